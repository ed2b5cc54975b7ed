"""What is on by default with CUDA, and can be had on the CPU: the loss does not depend on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from safetensors.torch import load_file

from megatron_probsft.training import batches, loop
from megatron_probsft.training.config import rules
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.step import StepResult, train_step
from tests.support.conversions import WEIGHTS, to_hf
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.training_runs import config_for, records, train, write_pairs

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
PAD = "make_vocab_size_divisible_by"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


@pytest.fixture(scope="module")
def whole(tiny_qwen2: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Five steps of one process, without anything of the kind; embeddings are not tied."""
    return train(1, config_for(tmp_path_factory.mktemp("whole") / "run", tiny_qwen2, data, train_iters=5))


def _equal(lines: list[dict], expected: list[dict]) -> None:
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in lines] == pytest.approx([line[key] for line in expected], rel=1e-5), key


PADDED: list[tuple[tuple[int, dict], tuple[int, dict], dict, list[int]]] = [
    # first and second layout and padding, for both, rows saved by each
    ((1, {PAD: 128}), (2, {TP: 2, PAD: 100}), {"use_distributed_optimizer": True}, [384, 400]),
    ((2, {TP: 2, PAD: 128}), (1, {}), {}, [512, 331]),
    ((1, {}), (2, {PP: 2, PAD: 64}), {}, [331, 384]),
]


@pytest.mark.parametrize(
    ("first", "second", "shared", "saved"), rows(PADDED, fast=PADDED[:1], rare=PADDED[1:]), ids=str
)
def test_padding_of_the_vocabulary_changes_no_result_and_no_resume(
    first: tuple[int, dict], second: tuple[int, dict], shared: dict, saved: list[int], whole: list[dict],
    tiny_qwen2: Path, data: Path, tmp_path: Path,
) -> None:  # fmt: skip
    folder = tmp_path / "run"
    common: dict[str, Any] = {"save_optim": True, "train_iters": 5} | shared
    train(first[0], config_for(folder, tiny_qwen2, data, exit_interval=2, **common, **first[1]))
    hf = str(tmp_path / "hf")
    train(second[0], config_for(folder, None, data, load=str(folder), save_hf=hf, **common, **second[1]))
    _equal(records(folder), whole)
    for step, expected in zip((2, 5), saved, strict=True):
        metadata = dist_checkpointing.load_tensors_metadata(str(folder / f"iter_{step:07d}"))
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            assert metadata[name].global_shape[0] == expected
    to_hf(folder, tmp_path / "converted")
    exported, converted = load_file(Path(hf) / WEIGHTS), load_file(tmp_path / "converted" / WEIGHTS)
    assert exported["lm_head.weight"].shape[0] == 331
    assert exported.keys() == converted.keys()
    assert all(torch.equal(exported[name], converted[name]) for name in exported)


FUSED: list[tuple[int, dict[str, Any]]] = [
    (2, {TP: 2, "sequence_parallel": True}),
    (2, {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "ddp_bucket_size": 5000}),
]


@pytest.mark.parametrize(("ranks", "settings"), rows(FUSED, fast=FUSED[:1], rare=FUSED[1:]), ids=str)
def test_even_packs_and_weight_gradients_that_add_themselves_up(
    ranks: int, settings: dict[str, Any], whole: list[dict], tiny_qwen2: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Several micro-batches per step; torch's own product stands in for Apex's kernel."""
    monkeypatch.setattr(rules, "_has_gpu", lambda: True)
    monkeypatch.setattr(batches, "even_length", lambda: 128)
    config = config_for(
        tmp_path / "run", tiny_qwen2, data, train_iters=5, gradient_accumulation_fusion=True, seq_length=40,
        **settings,
    )  # fmt: skip
    lines = train(ranks, config)
    assert max(line["micro_batches"] for line in lines) > 1
    assert {line["pack_length"] for line in lines} == {128}
    _equal(lines, whole)


OF_THE_CPU = ("torch_kernels.py", "cuda_factories.py", "utils.py")
"""Their reads are not those of a GPU with fused kernels: a norm for each parameter, columns one by one."""


class HostReads:
    """Where the host asks for a tensor's value inside of a step, by file: on a GPU each is a wait."""

    def __init__(self) -> None:
        self.by_step: list[list[str]] = []
        self._inside = False
        for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
            setattr(torch.Tensor, name, self._noted(getattr(torch.Tensor, name)))

    def _noted(self, read: Any) -> Any:
        def noting(tensor: torch.Tensor, *more: Any) -> Any:
            if self._inside:
                file = sys._getframe(1).f_code.co_filename
                if "megatron" in file and Path(file).name not in OF_THE_CPU:
                    self.by_step[-1].append(Path(file).name)
            return read(tensor, *more)

        return noting

    def train_step(self, *given: Any) -> StepResult:
        self.by_step.append([])
        self._inside = True
        try:
            return train_step(*given)
        finally:
            self._inside = False


def _reads(config: TrainConfig) -> list[list[str]]:
    reads = HostReads()
    loop.train_step = reads.train_step  # type: ignore[assignment]
    loop.run(config)
    return reads.by_step


def test_the_host_waits_once_a_step(tiny_qwen2: Path, data: Path, tmp_path: Path) -> None:
    """For the gradient's norm; the loss's sums, which left before it, are then read and need no wait."""
    config = config_for(
        tmp_path / "run", tiny_qwen2, data, seq_length=40, loss_denominator="microbatch-mean", packing=False
    )
    (steps,) = run_ranks(1, _reads, config)
    # In the first step Megatron-Core also asks once whether parameters have norms of their own.
    assert steps[1:] == [["clip_grads.py", "device.py"]] * 2
