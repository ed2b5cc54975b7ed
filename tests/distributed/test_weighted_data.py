"""Σ w·f ÷ Σ w of weighted data, on any layout, against transformers in float64."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_probsft.data.order import sample_indices
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training import loop
from megatron_probsft.training.config.arguments import parse_arguments
from tests.support.sizes import rows
from tests.support.training_runs import WORDS, config_for, records, train

ROWS, STEPS = 20, 3
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "no packing": (1, {"packing": False, "micro_batch_size": 3}),
    "DP 2": (2, {}),
    "DP 2, no packing": (2, {"packing": False, "micro_batch_size": 2}),
    "TP 2 × PP 2": (
        4,
        {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True},
    ),
    "CP 2": (2, {"context_parallel_size": 2}),
    "materialized": (1, {"loss_path": "materialized"}),
}


def _rows() -> list[dict[str, Any]]:
    generator = random.Random(7)

    def text() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, 9)))

    rows = []
    for _ in range(ROWS):
        messages = []
        for _ in range(generator.randint(1, 3)):
            messages.append({"role": "user", "content": text()})
            messages.append({"role": "assistant", "content": text()})
            if generator.random() < 0.7:
                messages[-1]["weight"] = generator.choice([0, 0.25, 1, 3])
        if all(message.get("weight", 1) == 0 for message in messages[1::2]):
            messages[-1]["weight"] = 0.5
        rows.append({"messages": messages, "info": {"quality": generator.choice([0.2, 1, 1.7])}})
    return rows


def _write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "weighted.jsonl", _rows())


def _samples(folder: Path, data: Path) -> list[tuple[list[int], list[float]]]:
    """(token ids, weight of each), the ChatML of these models written out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = []
    for row in map(json.loads, data.read_text().splitlines()):
        tokens, weights, before = [], [], ""
        for number, message in enumerate(row["messages"]):
            if message["role"] == "user":
                before += f"<|im_start|>user\n{message['content']}<|im_end|>\n<|im_start|>assistant\n"
                continue
            last = number == len(row["messages"]) - 1
            weight = row["info"]["quality"] * message.get("weight", 1)
            answer = tokenizer(message["content"] + "<|im_end|>", add_special_tokens=False).input_ids
            prompt = tokenizer(before, add_special_tokens=False).input_ids
            tokens += prompt + answer
            weights += [0.0] * len(prompt) + [weight] * len(answer)
            before = "" if last else "\n"
        samples.append((tokens, weights))
    return samples


def _reference(folder: Path, data: Path, indices: list[int]) -> tuple[float, float, int, torch.Tensor]:
    """Weighted mean of 1 − p, unweighted mean of −log p, trained tokens, gradient of the tied embedding."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    all_p, all_w = [], []
    samples = _samples(folder, data)
    for index in indices:
        tokens, weights = torch.tensor(samples[index][0]), torch.tensor(samples[index][1])
        log_p = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        trained = weights[1:] > 0
        all_p.append(log_p.gather(1, tokens[1:, None])[trained, 0].exp())
        all_w.append(weights[1:][trained].double())
    p, w = torch.cat(all_p), torch.cat(all_w)
    loss = (w * (1 - p)).sum() / w.sum()
    (gradient,) = torch.autograd.grad(loss, [model.get_parameter("model.embed_tokens.weight")])
    return loss.item(), -p.log().mean().item(), len(p), gradient


def _train(
    ranks: int, config: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict], list[torch.Tensor]]:
    """Records, and the embedding's gradient of each step."""
    original = loop.train_step

    def recording(state: Any, batch: Any, criterion: Any) -> Any:
        result = original(state, batch, criterion)
        if distributed.rank() == 0:
            gradient = state.gpt[0].embedding.word_embeddings.weight.main_grad
            torch.save(gradient.clone(), folder.with_name(f"{folder.name} {state.iteration}.pt"))
        return result

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", recording)
        steps = train(ranks, config)
    return steps, [torch.load(folder.with_name(f"{folder.name} {step}.pt")) for step in (1, 2, 3)]


@pytest.mark.parametrize("layout", rows(LAYOUTS, fast=["DP 2"]))
def test_weighted_loss_and_gradient_equal_a_float64_reference(
    layout: str, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A learning rate of (almost) 0 keeps the weights as they are for all three steps."""
    ranks, settings = LAYOUTS[layout]
    config = config_for(
        tmp_path / "run", tiny_llama, data, objective="p", weight_key="info.quality", lr=1e-30, min_lr=0.0,
        weight_decay=0.0, clip_grad=0.0, **settings,
    )  # fmt: skip
    steps, gradients = _train(ranks, config, tmp_path / "run", monkeypatch)
    for step, (record, gradient) in enumerate(zip(steps, gradients, strict=True)):
        indices = sample_indices(step * 8, 8, ROWS, 5).tolist()
        loss, nll, tokens, expected = _reference(tiny_llama, data, indices)
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
        assert record["nll"] == pytest.approx(nll, rel=1e-5)
        assert record["supervised_tokens"] == tokens
        if "tensor_model_parallel_size" in settings:  # rank 0 has the first rows
            expected = expected[: len(gradient)]
        scale = expected.abs().max().item()
        torch.testing.assert_close(gradient[: len(expected)].double(), expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.size("test")
def test_weighted_runs_follow_each_other_on_every_layout(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    """With updates: three steps and validation, whose weighted mean is over all of its data."""
    settings: dict[str, Any] = {"weight_key": "info.quality", "valid_data": [str(data)], "objective": "p"}
    runs = {}
    for layout in ("one process", "DP 2, no packing", "TP 2 × PP 2"):
        ranks, more = LAYOUTS[layout]
        runs[layout] = train(ranks, config_for(tmp_path / layout, tiny_llama, data, **settings, **more))
        for record, expected in zip(runs[layout], runs["one process"], strict=True):
            for key in ("loss", "nll", "mean_p", *(["grad_norm"] if record["kind"] == "train" else [])):
                assert record[key] == pytest.approx(expected[key], rel=1e-5), (layout, key)
    first = records(tmp_path / "one process", "validation")[0]
    loss, nll, tokens, _ = _reference(tiny_llama, data, list(range(ROWS)))
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    assert first["nll"] == pytest.approx(nll, rel=1e-5)
    assert first["supervised_tokens"] == tokens


def test_equal_weights_are_no_weights(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    for row in rows:
        for message in row["messages"]:
            message.pop("weight", None)
        row["two"] = 2
    file = _write(tmp_path / "two.jsonl", rows)
    plain = train(1, config_for(tmp_path / "plain", tiny_llama, file))
    twos = train(1, config_for(tmp_path / "twos", tiny_llama, file, weight_key="two"))
    for one, two in zip(plain, twos, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-6)
    assert not math.isclose(plain[0]["loss"], plain[1]["loss"])


def test_weights_go_with_the_token_denominator_only(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--hf-model", "m", "--data", str(data), "--save", str(tmp_path / "run"), "--train-iters", "1"]
    flags += ["--weight-key", "info.quality", "--loss-denominator", "kept-tokens"]
    with pytest.raises(UserError, match="--weight-key goes with --loss-denominator tokens only, not with"):
        parse_arguments(flags)
    with pytest.raises(UserError, match="--loss-denominator microbatch-mean does not go with weighted data"):
        train(1, config_for(tmp_path / "run", tiny_llama, data, loss_denominator="microbatch-mean"))
