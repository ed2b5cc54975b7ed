"""What a run tells: rates and times, model FLOPs, histograms, entropy, sources, the terminal."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training import loop
from megatron_probsft.training.log import reporter as reporting
from megatron_probsft.training.log.console import Console
from megatron_probsft.training.log.flops import model_flops, peak_tflops
from megatron_probsft.training.log.reporter import Reporter
from megatron_probsft.training.log.timing import PARTS
from megatron_probsft.training.state import TrainState
from megatron_probsft.training.step import StepResult, train_step
from megatron_probsft.vocab_parallel.token_means import TokenMeans, combine
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny_family
from tests.support.training_runs import config_for, records, train, write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 24)


@pytest.fixture
def tiny_mixtral(tmp_path: Path) -> Path:
    return save_tiny_family(tmp_path / "mixtral", "Mixtral", num_hidden_layers=2)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_qwen2", "tiny_mixtral"])
def test_model_flops_are_those_of_an_unpacked_step(family: str, request: pytest.FixtureRequest) -> None:
    """torch's counter on transformers' model, sample by sample; it counts the whole L² of attention."""
    folder = request.getfixturevalue(family)
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager"
    )
    lengths = [7, 40, 13]
    with FlopCounterMode(display=False) as counter:
        for length in lengths:
            model(torch.arange(length)[None]).logits.sum().backward()
    shape = read_hf_model(folder).shape
    heads = shape.num_attention_heads * shape.head_dim
    causal_half = 3 * 2 * shape.num_layers * heads * sum(length**2 for length in lengths)
    expected = counter.get_total_flops() - causal_half
    assert model_flops(shape, np.asarray(lengths), sum(lengths)) == expected
    head = 6 * shape.hidden_size * shape.vocab_size
    assert model_flops(shape, np.asarray(lengths), 11) == expected - head * (sum(lengths) - 11)


def test_peaks_by_device_name() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989.4, "NVIDIA H100 PCIe": 756.0, "NVIDIA H200": 989.4,
        "NVIDIA A100-SXM4-80GB": 311.9, "NVIDIA B200": 2250.0, "NVIDIA GB200": 2500.0, "NVIDIA L40S": 362.1,
        "NVIDIA L4": 121.0, "cpu": None, "Tesla T4": None, "NVIDIA GeForce RTX 4090": 165.2,
        "NVIDIA GeForce RTX 4090 Laptop GPU": None, "NVIDIA GeForce RTX 4090 D": None,
        "NVIDIA GeForce RTX 5090 Laptop GPU": None, "NVIDIA RTX A4000": None, "NVIDIA RTX A1000": None,
    }  # fmt: skip
    assert {name: peak_tflops(name) for name in names} == names


@pytest.mark.parametrize(
    "layout",
    rows([{}, {"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}], fast=[{}]),
    ids=["DP 2", "TP 2", "PP 2"],
)
def test_the_records_of_a_run(
    layout: dict, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """24 samples, all in each step; counts and entropy of the first step from transformers."""
    monkeypatch.setattr(reporting, "peak_tflops", lambda name: 1e-3 if name == "cpu" else None)
    folder = tmp_path / "run"
    settings: dict[str, Any] = {
        "global_batch_size": 24, "log_entropy": True, "valid_data": [str(data)], "bf16": True, **layout
    }  # fmt: skip
    settings["save_interval"] = settings["eval_interval"] = 1
    train(2, config_for(folder, tiny_llama, data, **settings))
    steps, validations = records(folder, "train"), records(folder, "validation")

    lengths, p, entropies = _by_transformers(tiny_llama, data)
    first = steps[0]
    assert (first["samples"], first["tokens"], first["supervised_tokens"]) == (24, sum(lengths), len(p))
    assert first["entropy"] == pytest.approx(float(entropies.mean()), rel=0.02)  # bf16
    assert first["p_histogram"] == pytest.approx(validations[0]["p_histogram"])
    # bf16 moves a token over a bin's edge now and then
    expected = torch.histc(p, 20, 0, 1) / len(p)
    assert float((expected - torch.tensor(first["p_histogram"])).abs().sum()) < 4.1 / len(p)
    assert first["p_below_0.1"] == pytest.approx(sum(first["p_histogram"][:2]))
    assert all(record["entropy"] > 0 for record in validations)

    ends = [record["seconds_since_start"] for record in steps]
    for record, start, end in zip(steps, [0.0, *ends], ends, strict=False):
        seconds = record["seconds"]
        assert set(seconds) == set(PARTS)
        assert all(value >= 0 for value in seconds.values())
        assert sum(seconds.values()) == pytest.approx(end - start, abs=0.02)
        step_seconds = sum(seconds.values()) - seconds["validation"] - seconds["checkpoint"]
        assert record["tokens_per_second"] == pytest.approx(record["tokens"] / step_seconds)
        assert record["supervised_tokens_per_second"] == pytest.approx(len(p) / step_seconds)
        flops = model_flops(read_hf_model(tiny_llama).shape, np.asarray(lengths), len(p))
        tflops = flops / step_seconds / 2 / 1e12
        assert record["model_tflops_per_device"] == pytest.approx(tflops)
        assert record["mfu"] == pytest.approx(tflops / 1e-3)
        assert 0.1 < record["peak_memory_gib"] < 20
    for part in ("data", "forward_backward", "optimizer", "validation"):
        assert all(record["seconds"][part] > 0 for record in steps), part
    assert [record["seconds"]["checkpoint"] > 0 for record in steps] == [False, True, True]
    shown = capfd.readouterr().out
    assert f" | entropy {first['entropy']:.3f} | grad-norm" in shown
    assert f"supervised tokens/s | MFU {first['mfu']:.1%} | ETA" in shown

    board = EventAccumulator(str(folder / "tensorboard"), {"histograms": 0}).Reload()
    assert {"train/seconds/data", "train/mfu", "train/entropy", "validation/nll"} <= set(
        board.Tags()["scalars"]
    )
    histogram = board.Histograms("train/p")[0].histogram_value
    assert histogram.num == len(p)
    assert [n / len(p) for n in histogram.bucket] == pytest.approx(first["p_histogram"])


def _by_transformers(folder: Path, data: Path) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Tokens that go through the model, by sample; p and entropy `[T]` of all supervised tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths, p, entropies = [], [], []
    for row in map(json.loads, data.read_text().splitlines()):
        messages = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor(tokenizer(prompt + row["response"] + "<|im_end|>")["input_ids"])
        with torch.no_grad():
            log_p = model(ids[None, :-1]).logits[0].log_softmax(-1)[start - 1 :]
        lengths.append(len(ids) - 1)
        p.append(log_p.gather(1, ids[start:, None]).exp().squeeze(1))
        entropies.append(-(log_p.exp() * log_p).sum(1))
    return lengths, torch.cat(p), torch.cat(entropies)


def test_entropy_is_there_on_request_only(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    lines = train(1, config_for(tmp_path / "without", tiny_llama, data, train_iters=2))
    assert "entropy" not in lines[0]
    assert "mfu" not in lines[0]  # no peak is known of this CPU
    with_it = train(1, config_for(tmp_path / "with", tiny_llama, data, train_iters=2, log_entropy=True))
    assert 0 < with_it[0]["entropy"] < math.log(331)
    assert [line["loss"] for line in with_it] == [line["loss"] for line in lines]


def _means(tokens: int, nll: float) -> TokenMeans:
    return TokenMeans(tokens, 2 * nll, nll, math.exp(-nll), [1.0] + [0.0] * 19)


def test_validation_by_source(tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture) -> None:
    """The total weighs sources by their tokens."""
    config = config_for(tmp_path, tiny_llama, tmp_path / "unused.jsonl")
    sources = {"math": _means(300, 1.0), "chat": _means(100, 3.0)}
    assert combine([*sources.values()]).nll == 1.5
    with Reporter(config, read_hf_model(tiny_llama).shape, 10, 0) as reporter:
        reporter.validation(4, sources, 2.0)
        reporter.validation(5, {"all": _means(10, 1.0)}, 2.0)
    both, one = records(tmp_path, "validation")
    assert (both["nll"], both["loss"], both["supervised_tokens"]) == (1.5, 3.0, 400)
    assert both["sources"]["math"] == {
        "loss": 2.0, "nll": 1.0, "mean_p": math.exp(-1.0), "p_below_0.1": 1.0, "p_above_0.55": 0.0,
        "p_histogram": [1.0] + [0.0] * 19, "supervised_tokens": 300,
    }  # fmt: skip
    assert both["p_below_0.1"] == 1.0
    assert set(both["sources"]) == {"math", "chat"}
    assert "sources" not in one
    assert capsys.readouterr().out.splitlines()[:3] == [
        "validation at step 4 | loss 3.0000 | nll 1.5000 | mean p 0.288 | 400 supervised tokens in 2.0 s",
        "  math | loss 2.0000 | nll 1.0000 | mean p 0.368 | 300 supervised tokens",
        "  chat | loss 6.0000 | nll 3.0000 | mean p 0.050 | 100 supervised tokens",
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("validation/sources/chat/nll")] == [3.0]
    histogram = board.Histograms("validation/sources/chat/p")[0].histogram_value
    assert (histogram.num, histogram.bucket[0]) == (100, 100)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_below_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        console = Console(active=True, stream=stream)
        console.say("a line [red] " + "x" * 200)
        console.step(3, 12, "loss 1.0 | ETA 0:00:09")
        assert list(console.progress("validation", iter("abc"), 3)) == ["a", "b", "c"]
        console.say("after it")
        console.close()
        console.show(Text("a table"))
        console.say("the end")
    plain = "a line [red] " + "x" * 200 + "\nafter it\na table\nthe end\n"
    assert file.getvalue() == plain
    shown = terminal.getvalue()
    assert "a line [red] " + "x" * 200 + "\n" in shown  # not wrapped, no markup read
    assert "3/12" in shown
    assert "loss 1.0 | ETA 0:00:09" in shown
    assert "2/3" in shown
    assert "validation" not in shown[shown.index("after it") :]
    assert shown.endswith("a table\nthe end\n")
    assert Console(active=False, stream=terminal).say("not on this rank") is None
    assert terminal.getvalue() == shown


_FAKE_WANDB = """
import json, os

def _note(*call):
    with open(os.environ["FAKE_WANDB_LOG"], "a") as file:
        file.write(json.dumps(call) + "\\n")

class Histogram:
    def __init__(self, np_histogram):
        self.counts, self.edges = (part.tolist() for part in np_histogram)

class Run:
    def log(self, values, step):
        shown = {k: v.counts if isinstance(v, Histogram) else v for k, v in values.items()}
        _note("log", step, shown)

    def finish(self, exit_code):
        _note("finish", exit_code)

def init(**settings):
    if os.environ.get("FAKE_WANDB_FAILS"):
        raise RuntimeError("api_key not configured (no-tty)\\nmore about it")
    _note("init", settings)
    return Run()
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module wandb that notes its calls in the file returned."""
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "wandb.py").write_text(_FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.setenv("FAKE_WANDB_LOG", str(tmp_path / "calls"))
    return tmp_path / "calls"


@pytest.mark.size("test")
def test_wandb_gets_the_records_and_a_resumed_run_goes_on_there(
    fake_wandb: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings: dict[str, Any] = {
        "train_iters": 4, "save_optim": True, "valid_data": [str(data)], "wandb_project": "probabilities",
        "wandb_entity": "team", "wandb_exp_name": "first", "wandb_save_dir": str(tmp_path),
    }  # fmt: skip
    train(2, config_for(folder, tiny_llama, data, exit_interval=2, **settings))
    del settings["wandb_exp_name"], settings["wandb_save_dir"], settings["wandb_entity"]
    train(2, config_for(folder, None, data, load=str(folder), **settings))
    calls = [json.loads(line) for line in fake_wandb.read_text().splitlines()]
    first, second = [call[1] for call in calls if call[0] == "init"]
    assert {name: first[name] for name in ("project", "entity", "name", "dir", "resume")} == {
        "project": "probabilities", "entity": "team", "name": "first", "dir": str(tmp_path),
        "resume": "allow",
    }  # fmt: skip
    assert first["config"]["global_batch_size"] == 8
    assert second["id"] == first["id"] == (folder / "wandb_run_id").read_text()
    assert (second["name"], second["entity"], second["dir"]) == ("run", None, str(folder))
    assert [call[0] for call in calls if call[0] != "log"] == ["init", "finish", "init", "finish"]
    assert [call[1] for call in calls if call[0] == "finish"] == [0, 0]
    logged = [call[1:] for call in calls if call[0] == "log"]
    lines = records(folder)
    assert [step for step, _ in logged] == [line["iteration"] for line in lines] == [0, 1, 2, 3, 4, 4]
    for (_, values), line in zip(logged, lines, strict=True):
        assert values[f"{line['kind']}/loss"] == line["loss"]
        counts = [share * line["supervised_tokens"] for share in line["p_histogram"]]
        assert values[f"{line['kind']}/p"] == pytest.approx(counts)
    assert logged[1][1]["train/seconds/optimizer"] == lines[1]["seconds"]["optimizer"]


def test_a_failed_run_is_failed_on_wandb(
    fake_wandb: Path, tiny_llama: Path, data: Path, tmp_path: Path
) -> None:
    config = config_for(
        tmp_path / "run", tiny_llama, data, wandb_project="probabilities", lr=1e30, min_lr=0.0
    )
    config = config.replace(max_skipped_steps=1)
    with pytest.raises(UserError, match="not finite"):
        train(1, config)
    assert json.loads(fake_wandb.read_text().splitlines()[-1]) == ["finish", 1]


def test_wandb_is_refused_where_it_cannot_work(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    def refusal(**settings: Any) -> str:
        with pytest.raises(UserError) as caught:
            train(1, config_for(tmp_path / "run", tiny_llama, data, **settings))
        return str(caught.value)

    if importlib.util.find_spec("wandb") is None:
        assert refusal(wandb_project="x") == "--wandb-project needs the package wandb: pip install wandb"
    for flag in ("exp-name", "entity", "save-dir"):
        setting = "wandb_" + flag.replace("-", "_")
        assert refusal(**{setting: "x"}) == f"--wandb-{flag} belongs to --wandb-project"
    request.getfixturevalue("fake_wandb")
    monkeypatch.setenv("FAKE_WANDB_FAILS", "1")
    assert refusal(wandb_project="x") == (
        "--wandb-project x: W&B does not start: api_key not configured (no-tty); log in with `wandb login`, "
        "or keep the run on this disk with WANDB_MODE=offline"
    )


@pytest.mark.size("test")
def test_the_summary_of_a_stopped_and_resumed_run(
    tiny_llama: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Totals are those of all records, whichever process wrote them."""
    folder = tmp_path / "run"
    settings: dict[str, Any] = {
        "train_iters": 4, "save_optim": True, "valid_data": [str(data)], "eval_interval": 1,
        "tensor_model_parallel_size": 2,
    }  # fmt: skip
    train(2, config_for(folder, tiny_llama, data, exit_interval=3, **settings))
    stopped = json.loads((folder / "summary.json").read_text())
    assert (stopped["status"], stopped["steps"]) == ("stopped by --exit-interval", 3)
    assert stopped["checkpoint"] == str(folder / "iter_0000003")
    assert "run stopped by --exit-interval" in capfd.readouterr().out
    train(2, config_for(folder, None, data, load=str(folder), **settings))
    summary = json.loads((folder / "summary.json").read_text())
    lines, steps = records(folder), records(folder, "train")
    validations = [line for line in lines if line["kind"] == "validation"]
    assert (summary["status"], summary["steps"]) == ("finished", 4)
    for name in ("samples", "tokens", "supervised_tokens"):
        assert summary[name] == sum(step[name] for step in steps)
    assert summary["samples"] == 32
    for part in PARTS:
        in_records = sum(step["seconds"][part] for step in steps)
        after = summary["seconds"][part] - in_records
        # The last validation and checkpoint came after the last step's record.
        assert after > 0 if part in ("validation", "checkpoint", "other") else after == pytest.approx(0)
    assert summary["wall_seconds"] == pytest.approx(sum(summary["seconds"].values()))
    training = summary["wall_seconds"] - summary["seconds"]["validation"] - summary["seconds"]["checkpoint"]
    assert summary["tokens_per_second"] == pytest.approx(summary["tokens"] / training)
    assert min(step["packing_efficiency"] for step in steps) <= summary["packing_efficiency"]
    assert summary["packing_efficiency"] <= max(step["packing_efficiency"] for step in steps)
    assert 0 < summary["model_tflops_per_device"] <= max(step["model_tflops_per_device"] for step in steps)
    best = min(validations, key=lambda line: line["loss"])
    expected = {"first": validations[0], "last": validations[-1], "best": best}
    for which, line in expected.items():
        assert summary["validation"][which] == {
            name: line[name] for name in ("iteration", "loss", "nll", "mean_p")
        }
    assert summary["train"]["last"]["loss"] == steps[-1]["loss"]
    assert (summary["skipped_steps"], summary["spikes"]) == (0, 0)
    assert summary["peak_memory_gib"] >= steps[-1]["peak_memory_gib"]
    assert summary["checkpoint"] == str(folder / "iter_0000004")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    shown = capfd.readouterr().out
    assert "run finished" in shown
    assert f"loss {best['loss']:.4f}, nll {best['nll']:.4f}" in shown


@pytest.mark.size("test")
def test_skipped_steps_are_counted_over_resumes(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skipping(state: TrainState, *rest: Any) -> StepResult:
        result = train_step(state, *rest)
        if state.iteration in (1, 3):
            means = dataclasses.replace(result.means, loss=math.nan)
            return dataclasses.replace(result, means=means, skipped="loss")
        return result

    monkeypatch.setattr(loop, "train_step", skipping)
    folder = tmp_path / "run"
    settings: dict[str, Any] = {"train_iters": 4, "save_optim": True}
    train(1, config_for(folder, tiny_llama, data, exit_interval=2, **settings))
    train(1, config_for(folder, None, data, load=str(folder), **settings))
    assert [line["skipped_steps"] for line in records(folder)] == [1, 1, 2, 2]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["skipped_steps"] == 2
    assert summary["train"]["first"]["loss"] is None
