"""Steps that would ruin the weights are skipped, counted and shown; too many in a row stop the run."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_probsft.objectives.registry import get_objective
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.train import main
from megatron_probsft.training import loop
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.guards import Spikes
from megatron_probsft.training.state import TrainState
from megatron_probsft.training.step import Criterion, StepResult, train_step
from megatron_probsft.vocab_parallel.token_means import TokenMeans
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.training_runs import config_for, records, train, write_pairs

LAYOUTS = {
    "DP 2": {},
    "DP 2, distributed optimizer": {
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
    },
    "TP 2": {"tensor_model_parallel_size": 2},
    "PP 2": {"pipeline_model_parallel_size": 2},
    "PP 2 × VPP 2": {"pipeline_model_parallel_size": 2, "num_virtual_stages_per_pipeline_rank": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 40)


@dataclasses.dataclass
class Fault:
    """What goes wrong in which step on which rank; `in_loss` leaves the gradient as it is."""

    step: int
    rank: int
    value: float
    in_loss: bool = False

    def __post_init__(self) -> None:
        self.active = False

    def train_step(self, state: TrainState, batch: StepBatch, criterion: Criterion) -> StepResult:
        """Megatron's step with the fault, which must change nothing; others as they are."""
        self.active = state.iteration + 1 == self.step
        before = _everything(state)
        here = self.active and distributed.rank() == self.rank
        handles = []
        if here and not self.in_loss:
            weight = next(p for name, p in _weights(state).items() if "linear_fc1" in name)
            handles = [weight.register_hook(lambda gradient: torch.full_like(gradient, self.value))]
        if here and self.in_loss:

            def loss(log_p: torch.Tensor) -> torch.Tensor:
                return -log_p + torch.full_like(log_p, self.value)

            criterion = dataclasses.replace(
                criterion, objective=dataclasses.replace(criterion.objective, loss=loss)
            )
        result = train_step(state, batch, criterion)
        for handle in handles:
            handle.remove()
        after = _everything(state)
        same = [name for name in before if torch.equal(before[name], after[name])]
        if self.active:
            assert same == list(before)
            assert result.skipped == ("loss" if self.in_loss else "gradient")
        else:
            assert len(same) < len(before) / 4
        return result


def _weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {
        f"{i} {name}": weight
        for i, chunk in enumerate(state.gpt)
        for name, weight in chunk.named_parameters()
    }


def _everything(state: TrainState) -> dict[str, torch.Tensor]:
    """Copies of weights, moments, main weights, steps and the schedule's position."""
    state.gather_weights()
    found = {name: value.detach().clone() for name, value in _weights(state).items()}
    for number, inner in enumerate(getattr(state.optimizer, "chained_optimizers", [state.optimizer])):
        for place, (weight, moments) in enumerate(inner.optimizer.state.items()):
            found[f"{number} {place} main"] = weight.detach().clone()
            found |= {f"{number} {place} {name}": torch.as_tensor(m).clone() for name, m in moments.items()}
    found["schedule"] = torch.tensor([state.scheduler.num_steps, state.optimizer.param_groups[0]["lr"]])
    return found


def _final_weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    state = loop.run(config)
    state.gather_weights()
    return {name: value.detach().clone() for name, value in _weights(state).items()}


def _left_out(state: TrainState, batch: StepBatch, criterion: Criterion) -> StepResult:
    """What a skipped step 2 should come to: its batch is passed over, unseen."""
    if state.iteration + 1 != 2:
        return train_step(state, batch, criterion)
    state.iteration += 1
    state.consumed_samples += batch.samples
    return StepResult(TokenMeans(0, 0.0, 0.0, 0.0, [0.0] * 20), 0.0, 0.0, None, {})


FAULTS = [
    Fault(2, 0, float("nan")),
    Fault(2, 1, float("inf")),
    Fault(2, 1, float("nan"), in_loss=True),
    Fault(2, 1, float("-inf"), in_loss=True),
]
EVERY_FAULT = list(itertools.product(FAULTS, LAYOUTS))
OFTEN = EVERY_FAULT[::3]  # each fault, and each layout


@pytest.mark.parametrize(
    ("fault", "layout"),
    rows(EVERY_FAULT, fast=OFTEN[:1], rare=[fault for fault in EVERY_FAULT if fault not in OFTEN]),
    ids=str,
)
def test_a_step_that_is_not_finite_on_one_rank_leaves_no_trace(
    layout: str, fault: Fault, tiny_llama: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    settings: dict[str, Any] = {"train_iters": 4, "lr_warmup_iters": 0, **LAYOUTS[layout]}
    monkeypatch.setattr(loop, "train_step", _left_out)
    expected = run_ranks(2, _final_weights, config_for(tmp_path / "left_out", tiny_llama, data, **settings))
    monkeypatch.setattr(loop, "train_step", fault.train_step)
    folder = tmp_path / "run"
    got = run_ranks(2, _final_weights, config_for(folder, tiny_llama, data, **settings))
    for rank in range(2):
        assert all(torch.equal(value, got[rank][name]) for name, value in expected[rank].items())
    lines = records(folder, "train")
    assert [line["skipped_steps"] for line in lines] == [0, 1, 1, 1]
    assert [line["grad_norm"] is None for line in lines] == [False, True, False, False]
    assert [line["learning_rate"] for line in lines][2] == lines[1]["learning_rate"]
    what = "loss" if fault.in_loss else "gradient"
    assert f"step 2 skipped (1 so far): its {what} is not finite; weights" in capfd.readouterr().out


class Recorder:
    """Every step fails from `first` on; each rank notes its labels of every step."""

    def __init__(self, folder: Path, first: int) -> None:
        self.folder, self.first = folder, first

    def train_step(self, state: TrainState, batch: StepBatch, criterion: Criterion) -> StepResult:
        step = state.iteration + 1
        tokens = [micro_batch.tokens for micro_batch in batch.micro_batches]
        torch.save(tokens, self.folder / f"{step} {distributed.rank()}")
        value = float("nan") if step >= self.first and step != 3 else 0.0

        def loss(log_p: torch.Tensor) -> torch.Tensor:
            return -log_p + value

        objective = dataclasses.replace(get_objective("original"), loss=loss)
        return train_step(state, batch, dataclasses.replace(criterion, objective=objective))


def test_too_many_in_a_row_stop_the_run_and_leave_the_batch(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 2, 4 and 5 fail: 2 in a row are too many, and the third good step starts the count anew."""
    monkeypatch.setattr(loop, "train_step", Recorder(tmp_path, first=2).train_step)
    folder = tmp_path / "run"
    settings = {"train_iters": 9, "max_skipped_steps": 2, "save_interval": 1}
    with pytest.raises(UserError) as caught:
        train(2, config_for(folder, tiny_llama, data, **settings))
    pattern = folder / "skipped_step_0000005_data_rank_*.pt"
    assert str(caught.value) == (
        f"loss not finite in step 5, the 2. in a row (--max-skipped-steps): its batch is in {pattern}; "
        "the weights are as before these steps"
    )
    assert [line["skipped_steps"] for line in records(folder)] == [0, 1, 1, 2, 3]
    for rank in range(2):
        saved = torch.load(str(pattern).replace("*", str(rank)))
        expected = torch.load(tmp_path / f"5 {rank}")
        assert all(
            torch.equal(micro_batch["tokens"], tokens)
            for micro_batch, tokens in zip(saved, expected, strict=True)
        )
        assert not torch.equal(saved[0]["tokens"], torch.load(tmp_path / f"4 {rank}")[0])


def test_spikes_are_flagged_and_normal_runs_are_not() -> None:
    """Heavy-tailed noise around a falling curve: none is flagged at the default; planted ones are."""
    generator = torch.Generator().manual_seed(0)
    noise = (0.25 * torch.randn(2000, generator=generator)).exp().tolist()
    steps = {
        step: {"loss": 3 * 0.999**step + 0.1 * noise[step], "grad_norm": noise[-step - 1]}
        for step in range(2000)
    }
    default = TrainConfig().guards.spike_factor
    quiet = Spikes(default)
    assert not any(quiet.found(values) for values in steps.values())
    spikes = Spikes(default)
    steps[5]["loss"] = 90.0  # too early to know
    steps[300]["loss"] *= 2
    steps[301]["grad_norm"] = 12.0
    steps[302] = {"loss": float("nan"), "grad_norm": float("inf")}
    steps[1500] = {"loss": 4.0, "grad_norm": 40.0}
    found = {step: [*names] for step, values in steps.items() if (names := spikes.found(values))}
    assert found == {300: ["loss"], 301: ["grad_norm"], 1500: ["loss", "grad_norm"]}
    flat = Spikes(default)
    assert not any(flat.found({"loss": value}) for value in [1.0] * 40 + [1.3, 1.0, 0.2])
    assert flat.found({"loss": 1.5}) == {"loss": 1.0}


@pytest.mark.size("test")
def test_a_spike_in_a_run_is_shown_and_recorded(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    def wrong_labels(state: TrainState, batch: StepBatch, criterion: Criterion) -> StepResult:
        if state.iteration + 1 == 24:
            for micro_batch in batch.micro_batches:
                micro_batch.labels.copy_(310 + torch.arange(len(micro_batch.labels)) % 20)
        return train_step(state, batch, criterion)

    monkeypatch.setattr(loop, "train_step", wrong_labels)
    settings = {"train_iters": 25, "lr_decay_style": "constant", "lr": 1e-3, "global_batch_size": 40}
    lines = train(1, config_for(tmp_path / "run", tiny_llama, data, **settings))
    flagged = {line["iteration"]: line["spike"] for line in lines if line["spike"]}
    assert flagged == {24: ["loss", "grad_norm"]}
    medians = [sorted(line[name] for line in lines[:23])[11] for name in ("loss", "grad_norm")]
    shown = capfd.readouterr().out
    for name, median in zip(("loss", "grad_norm"), medians, strict=True):
        assert f"step 24: spike of {name}, {lines[23][name]:.4g}; median so far {median:.4g}\n" in shown
    assert shown.count("spike of") == 2


@pytest.mark.parametrize("layout", ["DP 2", "DP 2, distributed optimizer"])
def test_replicas_that_differ_stop_the_run(
    layout: str, tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """One element of one weight of rank 1; the checkpoint of step 2 is named, no later one written."""

    def drift(state: TrainState, batch: StepBatch, criterion: Criterion) -> StepResult:
        result = train_step(state, batch, criterion)
        if state.iteration == 4:
            state.gather_weights()
            state.gather_weights = lambda: None  # type: ignore[method-assign]
            name, weight = [*state.gpt[0].named_parameters()][-1]
            assert name == "decoder.final_layernorm.weight"
            with torch.no_grad():
                weight[3] += 1e-3 * distributed.rank()
        return result

    monkeypatch.setattr(loop, "train_step", drift)
    folder = tmp_path / "run"
    settings = {"train_iters": 6, "save_interval": 2, **LAYOUTS[layout]}
    settings["check_weight_hash_across_dp_replicas_interval"] = 2
    with pytest.raises(UserError) as caught:
        train(2, config_for(folder, tiny_llama, data, **settings))
    assert str(caught.value) == (
        "weights differ between data-parallel replicas after step 4, were equal after step 2: "
        "[Rank 1] Hash not matching for decoder.final_layernorm.weight in model chunk0; "
        "the newest checkpoint is of step 2"
    )
    assert "step 2: all 2 data-parallel replicas hold the same weights" in capfd.readouterr().out
    assert sorted(path.name for path in folder.glob("iter_*")) == ["iter_0000002"]


def _main(argv: list[str]) -> int:
    sys.argv = ["train", *argv]
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_a_run_that_gives_up_exits_with_an_error(
    tiny_llama: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """A learning rate beyond all measure: after the first update nothing is finite."""
    flags = (
        f"--hf-model {tiny_llama} --data {data} --save {tmp_path / 'run'} --train-iters 9 --seq-length 128"
    )
    flags += " --global-batch-size 8 --lr 1e30 --max-skipped-steps 3"
    assert run_ranks(2, _main, flags.split()) == [2, 2]
    (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert line.startswith("error: gradient not finite in step 4, the 3. in a row (--max-skipped-steps): ")
