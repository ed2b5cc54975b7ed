"""Four training steps: every layout against one process, and one process against plain transformers."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_probsft.data.order import sample_indices
from megatron_probsft.training.config.config import TrainConfig
from tests.support.sizes import rows
from tests.support.training_runs import config_for, records, train, write_pairs

STEPS = 4
TP, PP, CP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"
VPP = "num_virtual_stages_per_pipeline_rank"
OVERLAPS = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
UNPACKED = {"packing": False, "micro_batch_size": 2}
FULL = {"recompute_granularity": "full"}

# All of them with each objective, packed and not.
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP 2": (2, {TP: 2}),
    "TP 2 + SP": (2, {TP: 2, "sequence_parallel": True}),
    "PP 2": (2, {PP: 2}),
    "PP 3": (3, {PP: 3, "decoder_first_pipeline_num_layers": 2}),
    "PP 2 × VPP 2": (2, {PP: 2, VPP: 2}),
    "CP 2": (2, {CP: 2}),
    "TP 2 × CP 2": (4, {TP: 2, CP: 2}),
    "TP 2 × PP 2 + SP": (4, {TP: 2, PP: 2, "sequence_parallel": True}),
    "DP 2 distributed optimizer + overlaps": (2, OVERLAPS),
    "TP 2 × DP 2": (4, {TP: 2}),
    "full recompute": (1, FULL | {"recompute_method": "uniform", "recompute_num_layers": 1}),
}
OTHERS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP 2 × PP 2": (4, {TP: 2, PP: 2}),
    "PP 4": (4, {PP: 4}),  # middle stages, tied embeddings
    "PP 2, 3 + 1": (2, {PP: 2, "decoder_last_pipeline_num_layers": 1}),
    "PP 2 × VPP 2 × DP 2 distributed optimizer + overlaps": (4, {PP: 2, VPP: 2} | OVERLAPS),
    "TP 2 × PP 2 × VPP 2 + SP": (4, {TP: 2, PP: 2, VPP: 2, "sequence_parallel": True}),
    "DP 2": (2, {}),
    "DP 2 distributed optimizer": (2, {"use_distributed_optimizer": True}),
    "CP 4": (4, {CP: 4}),
    "TP 2 × CP 2 + SP": (4, {TP: 2, CP: 2, "sequence_parallel": True}),
    "PP 2 × CP 2": (4, {PP: 2, CP: 2}),
    "PP 2 × VPP 2 × CP 2": (4, {PP: 2, VPP: 2, CP: 2}),
    "DP 2 × CP 2, no packing": (4, UNPACKED | {CP: 2}),
    "TP 2, recompute of a block": (2, FULL | {TP: 2, "recompute_method": "block", "recompute_num_layers": 2}),
    "selective recompute": (1, {"recompute_granularity": "selective"}),
    "no packing, micro-batch 3": (1, {"packing": False, "micro_batch_size": 3}),
    "PP 4, no packing": (4, {PP: 4, "packing": False}),
    "fixed pack length": (2, {PP: 2, "fixed_pack_length": True}),
    "TP 2 + SP, fixed pack length": (
        2, {TP: 2, "sequence_parallel": True, "fixed_pack_length": True, "seq_length": 127}
    ),
    "PP 2 × DP 2 distributed optimizer + overlaps": (4, {PP: 2} | OVERLAPS),
    "TP 2 × PP 2 × CP 2 + SP, full recompute": (
        8,
        FULL | {TP: 2, PP: 2, CP: 2, "sequence_parallel": True, "recompute_method": "block",
                "recompute_num_layers": 1},
    ),
    "TP 2 × CP 2 × DP 2 distributed optimizer + overlaps, selective recompute": (
        8, OVERLAPS | {TP: 2, CP: 2, "recompute_granularity": "selective"}
    ),
    "PP 2 × VPP 2 × CP 2, no packing": (4, UNPACKED | {PP: 2, VPP: 2, CP: 2}),
    "micro-batch 4": (1, {"micro_batch_size": 4}),
    "shorter packs": (1, {"seq_length": 64}),
    "small loss chunks": (1, {"loss_chunk_tokens": 7}),
    "PP 2 small loss chunks": (2, {PP: 2, "loss_chunk_tokens": 16}),
    "materialized": (1, {"loss_path": "materialized"}),
    "PP 2 materialized": (2, {PP: 2, "loss_path": "materialized"}),
}  # fmt: skip
# f(p) written out anew, in float64.
OBJECTIVES = {
    "original": lambda p: -p.log(),
    "GeneralFamily-8": lambda p: (1 - p**8) / 8,
    "OnlyTopP-0.2": lambda p: (1 - p) * (p >= 0.2),
    "OnlyBottomLogP-0.5": lambda p: -p.log() * (p <= 0.5),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


@pytest.fixture(scope="module")
def one_process(
    tiny_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("one")
    return {name: train(1, _config(folder / name, tiny_llama, data, objective=name)) for name in OBJECTIVES}


def _config(folder: Path, model: Path, data: Path, **settings: Any) -> TrainConfig:
    return config_for(folder, model, data, **({"train_iters": STEPS} | settings))


def _compare(runs: list[dict], expected: list[dict], tolerance: float) -> None:
    assert len(runs) == len(expected) >= STEPS
    for run, reference in zip(runs, expected, strict=True):
        for key in ("loss", "nll", "mean_p", "grad_norm"):
            assert run[key] == pytest.approx(reference[key], rel=tolerance), (run["iteration"], key)


EVERY_WAY = list(
    itertools.product(LAYOUTS, ["packed", "unpacked"], ["original", "GeneralFamily-8", "OnlyTopP-0.2"])
)
OFTEN = EVERY_WAY[::5]  # each layout with an objective or two


@pytest.mark.parametrize(
    ("layout", "packs", "objective"),
    rows(EVERY_WAY, fast=OFTEN[:1], rare=[way for way in EVERY_WAY if way not in OFTEN]),
)
def test_layout_equals_one_process(
    layout: str, packs: str, objective: str, one_process: dict, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    ranks, settings = LAYOUTS[layout]
    settings = settings | (UNPACKED if packs == "unpacked" else {})
    config = _config(tmp_path / "run", tiny_llama, data, objective=objective, **settings)
    _compare(train(ranks, config), one_process[objective], 1e-5)


@pytest.mark.parametrize(
    "layout",
    rows(
        OTHERS,
        fast=["materialized"],
        rare=[
            "TP 2 × PP 2 × VPP 2 + SP", "DP 2", "DP 2 distributed optimizer", "TP 2 × CP 2 + SP",
            "PP 2 × CP 2", "PP 2 × VPP 2 × CP 2", "PP 4, no packing", "TP 2 + SP, fixed pack length",
            "PP 2 × DP 2 distributed optimizer + overlaps", "TP 2 × PP 2 × CP 2 + SP, full recompute",
            "PP 2 small loss chunks", "PP 2 materialized",
        ],
    ),
)  # fmt: skip
def test_more_layouts_equal_one_process(
    layout: str, one_process: dict, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    ranks, settings = OTHERS[layout]
    config = _config(tmp_path / "run", tiny_llama, data, objective="GeneralFamily-8", **settings)
    _compare(train(ranks, config), one_process["GeneralFamily-8"], 1e-5)


@pytest.mark.parametrize("objective", rows(OBJECTIVES, fast=["original"]))
def test_one_process_equals_plain_transformers(
    objective: str, one_process: dict, tiny_llama: Path, data: Path
) -> None:
    _compare(one_process[objective], _plain_transformers(tiny_llama, data, OBJECTIVES[objective]), 1e-4)


@pytest.mark.size("test")
def test_untied_qwen2_across_stages_and_shards(tiny_qwen2: Path, data: Path, tmp_path: Path) -> None:
    one = train(1, _config(tmp_path / "one", tiny_qwen2, data))
    settings = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 4, "sequence_parallel": True}
    _compare(train(8, _config(tmp_path / "eight", tiny_qwen2, data, **settings)), one, 1e-5)
    _compare(one, _plain_transformers(tiny_qwen2, data, OBJECTIVES["original"]), 1e-4)


DENOMINATORS = {
    # denominator: (objective, loss from the p of each micro-batch of three samples)
    "microbatch-sum": ("p", lambda parts: sum((1 - p).mean() for p in parts)),
    "microbatch-mean": ("p", lambda parts: sum((1 - p).mean() for p in parts) / len(parts)),
    "kept-tokens": (
        "OnlyTopLogP-0.002",
        lambda parts: (-(kept := torch.cat(parts)[torch.cat(parts) >= 0.002]).log()).sum() / len(kept),
    ),
}


@pytest.mark.parametrize("layout", rows(["one process", "CP 2", "TP 2 × PP 2"], fast=["one process"]))
@pytest.mark.parametrize("denominator", rows(DENOMINATORS, fast=["microbatch-mean"]))
def test_denominators_of_other_trainers(
    denominator: str, layout: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    objective, loss = DENOMINATORS[denominator]
    ranks, settings = (LAYOUTS | OTHERS).get(layout, (1, {}))
    config = _config(
        tmp_path / "run", tiny_llama, data, objective=objective, loss_denominator=denominator, packing=False,
        micro_batch_size=3, **settings,
    )  # fmt: skip
    _compare(train(ranks, config), _plain_transformers(tiny_llama, data, None, loss_of_parts=loss), 1e-4)


PAPERS_LOSSES: dict[str, tuple[Any, Any]] = {
    # objective: (its loss, its loss mask) of p
    "OnlyTopP-0.02": (lambda p: 1 - p, lambda p: p >= 0.02),
    "OnlyTopP-0.99": (lambda p: 1 - p, lambda p: p >= 0.99),
    "OnlyTopLogP-0.003": (lambda p: -p.log(), lambda p: p >= 0.003),
    "OnlyBottomP-0.002": (lambda p: 1 - p, lambda p: p <= 0.002),
    "OnlyBottomLogP-0.01": (lambda p: -p.log(), lambda p: p <= 0.01),
    "GeneralFamily-0.5": (lambda p: -(p**0.5 - 1) / 0.5, torch.ones_like),
}
NOTHING_KEPT = {"OnlyTopP-0.02": 6, "OnlyTopP-0.99": 12}  # in so many of the twelve micro-batches


def _papers_code(objective: str, ranks: int, kept: list[list[int]]) -> Any:
    """A step's loss in the trainer of arXiv 2510.00526, of its micro-batches; FSDP takes the mean over ranks.

    Each is divided by its loss mask's own sum, and the sum over a rank's micro-batches by nothing. `kept`
    gets those sums.
    """
    loss, mask = PAPERS_LOSSES[objective]

    def of_micro_batch(p: torch.Tensor) -> torch.Tensor:
        loss_mask = mask(p).double()
        kept[-1].append(int(loss_mask.sum()))
        return (loss(p) * loss_mask).sum() / (loss_mask.sum() + 1e-8)

    def of_step(parts: list[torch.Tensor]) -> Any:
        kept.append([])
        each = math.ceil(len(parts) / ranks)
        by_rank = [parts[first : first + each] for first in range(0, len(parts), each)]
        return sum(sum(map(of_micro_batch, own)) for own in by_rank) / ranks

    return of_step


PAPERS_LAYOUTS = ["one process", "DP 2", "CP 2", "TP 2 + SP", "TP 2 × CP 2", "TP 2 × PP 2"]
PAPERS_RUNS = list(itertools.product(PAPERS_LOSSES, PAPERS_LAYOUTS))


@pytest.mark.parametrize(
    ("objective", "layout"),
    rows(PAPERS_RUNS, fast=PAPERS_RUNS[:1], rare=[run for run in PAPERS_RUNS if run not in PAPERS_RUNS[::5]]),
)
def test_the_papers_denominator(
    objective: str, layout: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    ranks, settings = (LAYOUTS | OTHERS).get(layout, (1, {}))
    config = _config(
        tmp_path / "run", tiny_llama, data, objective=objective, loss_denominator="microbatch-sum",
        packing=False, micro_batch_size=3, loss_chunk_tokens=8, **settings,
    )  # fmt: skip
    kept: list[list[int]] = []
    loss = _papers_code(objective, 2 if layout == "DP 2" else 1, kept)
    _compare(train(ranks, config), _plain_transformers(tiny_llama, data, None, loss_of_parts=loss), 1e-4)
    assert sum(step.count(0) for step in kept) == NOTHING_KEPT.get(objective, 0)


@pytest.mark.parametrize("path", rows(["fused", "materialized"], fast=["fused"]))
@pytest.mark.parametrize("denominator", ["microbatch-mean", "kept-tokens"])
def test_kept_tokens_of_micro_batches_and_of_the_step(
    denominator: str, path: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    def loss(parts: list[torch.Tensor]) -> Any:
        kept = [part[part >= 0.02] for part in parts]
        if denominator == "kept-tokens":
            return (1 - torch.cat(kept)).sum() / max(len(torch.cat(kept)), 1)
        return sum((1 - part).sum() / max(len(part), 1) for part in kept) / len(parts)

    config = _config(
        tmp_path / "run", tiny_llama, data, objective="OnlyTopP-0.02", loss_denominator=denominator,
        packing=False, micro_batch_size=3, loss_path=path, loss_chunk_tokens=8,
    )  # fmt: skip
    _compare(train(1, config), _plain_transformers(tiny_llama, data, None, loss_of_parts=loss), 1e-4)


@pytest.mark.size("test")
def test_micro_batches_of_all_ranks_count_alike(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Eight samples in micro-batches of two: the sum over four of one rank, the mean of two ranks' two."""
    settings: dict[str, Any] = {"packing": False, "micro_batch_size": 2, "clip_grad": 0.0}

    def first_step(ranks: int, denominator: str) -> dict:
        folder = tmp_path / f"{ranks} {denominator}"
        config = _config(folder, tiny_llama, data, loss_denominator=denominator, **settings)
        return train(ranks, config)[0]

    mean = first_step(1, "microbatch-mean")
    for ranks, denominator, factor in (
        (2, "microbatch-mean", 1),
        (1, "microbatch-sum", 4),
        (2, "microbatch-sum", 2),
    ):
        step = first_step(ranks, denominator)
        assert step["loss"] == pytest.approx(factor * mean["loss"], rel=1e-5)
        assert step["grad_norm"] == pytest.approx(factor * mean["grad_norm"], rel=1e-5)


def half_entropy_weight(log_p: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
    """A user's own objective; takes a statistic of the whole vocabulary."""
    return -log_p * (1 + entropy / 2)


USERS_OWN = f"{__name__}:half_entropy_weight"


@pytest.mark.parametrize("objective", rows(["EAFT-1", USERS_OWN], fast=[]))
def test_statistics_across_shards_and_a_users_own_function(
    objective: str, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    one = train(1, _config(tmp_path / "one", tiny_llama, data, objective=objective))
    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "loss_chunk_tokens": 16}
    _compare(train(4, _config(tmp_path / "four", tiny_llama, data, objective=objective, **layout)), one, 1e-5)


@pytest.mark.size("test")
def test_ten_steps_with_the_fused_head_equal_the_materialized_path(
    tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    layout = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True}

    def ten_steps(path: str) -> list[dict]:
        settings = layout | {"train_iters": 10, "objective": "GeneralFamily-8", "loss_path": path}
        return train(4, _config(tmp_path / path, tiny_llama, data, loss_chunk_tokens=16, **settings))

    fused, materialized = ten_steps("fused"), ten_steps("materialized")
    assert len(fused) == 10
    _compare(fused, materialized, 1e-5)


@pytest.mark.parametrize("path", rows(["materialized", "fused"], fast=["fused"]))
def test_bf16_follows_float32(
    path: str, one_process: dict, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    config = _config(
        tmp_path / "run",
        tiny_llama,
        data,
        bf16=True,
        loss_path=path,
        tensor_model_parallel_size=3,
        use_distributed_optimizer=True,
    )
    _compare(train(3, config), one_process["original"], 0.05)


def test_validation_is_token_exact(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    """Every sample once, weighted by its tokens, on two layouts; against transformers, sample by sample."""
    settings: dict[str, Any] = {"valid_data": [str(data)], "train_iters": 1, "lr_warmup_iters": 0}
    config_for_layout = {1: {}, 4: {"tensor_model_parallel_size": 2, "global_batch_size": 3}}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        p = torch.cat([_label_probabilities(model, *sample) for sample in _samples(tiny_llama, data)])
    histogram = torch.histc(p, 20, 0, 1) / len(p)
    for ranks, more in config_for_layout.items():
        folder = tmp_path / str(ranks)
        train(ranks, _config(folder, tiny_llama, data, **(settings | more)))
        first = records(folder, "validation")[0]
        assert first["iteration"] == 0
        assert first["supervised_tokens"] == len(p)
        assert first["nll"] == pytest.approx(-p.log().mean().item(), rel=1e-5)
        assert first["mean_p"] == pytest.approx(p.mean().item(), rel=1e-5)
        assert first["p_histogram"] == pytest.approx(histogram.tolist(), abs=1e-6)


def _plain_transformers(
    folder: Path, data: Path, f: Any, loss_of_parts: Any = None
) -> list[dict[str, float]]:
    """Megatron-free: samples one by one, torch's AdamW, the schedule and the clipping written out.

    f: of p, averaged over all tokens; or loss_of_parts: of the p of each three samples.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    samples = _samples(folder, data)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    reports = []
    for step in range(STEPS):
        # warmup of one step from 0 to 1e-2, then a cosine down to 1e-3 at the end
        progress = max(step - 1, 0) / (STEPS - 1)
        rate = 0.0 if step == 0 else 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = sample_indices(step * 8, 8, len(samples), 5)
        each = [_label_probabilities(model, *samples[i]).double() for i in np.asarray(chosen)]
        p = torch.cat(each)
        parts = [torch.cat(each[first : first + 3]) for first in range(0, len(each), 3)]
        loss = f(p).sum() / len(p) if loss_of_parts is None else loss_of_parts(parts)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        optimizer.step()
        p = p.detach()
        reports.append(
            {"loss": loss.item(), "nll": -p.log().mean().item(), "mean_p": p.mean().item(), "grad_norm": norm}
        )
    return reports


def _samples(folder: Path, data: Path) -> list[tuple[list[int], int]]:
    """(token ids, length of the prompt) with the ChatML of these models written out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    samples = []
    for row in map(json.loads, data.read_text().splitlines()):
        prompt = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
        head = tokenizer(prompt, add_special_tokens=False).input_ids
        tail = tokenizer(row["response"], add_special_tokens=False).input_ids
        samples.append((head + tail + [tokenizer.eos_token_id], len(head)))
    return samples


def _label_probabilities(model: Any, token_ids: list[int], prompt_length: int) -> torch.Tensor:
    tokens = torch.tensor([token_ids])
    logits = model(tokens).logits[0, prompt_length - 1 : -1]
    return logits.double().softmax(-1).gather(1, tokens[0, prompt_length:, None]).squeeze(1)
