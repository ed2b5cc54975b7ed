"""The loop over transformers' model, on a machine whose host memory the device cannot read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu.kit.hf_loop import HFLoop
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.micro_batch import MicroBatch


@dataclasses.dataclass(frozen=True)
class _OnHost(MicroBatch):
    """All that it has are sizes: work with the host's tensors fails, as a GPU's does."""

    there: MicroBatch | None = None

    def on_device(self) -> MicroBatch:
        assert self.there is not None
        return self.there


def test_a_step_takes_what_is_on_the_device(tiny_qwen2: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    packs = [_pack([5, 9], generator), _pack([12], generator)]
    loop = HFLoop(tiny_qwen2, "cpu")
    expected = sum(_negative_log_p(loop, pack) for pack in packs) / sum(len(pack.labels) for pack in packs)
    step = StepBatch([_hidden(pack) for pack in packs], 14, np.array([5, 9, 12]), 1.0)  # type: ignore[list-item]
    torch.testing.assert_close(loop.step(step), torch.as_tensor(expected), rtol=0.01, atol=0.0)


def _pack(lengths: list[int], generator: torch.Generator) -> MicroBatch:
    total = sum(lengths)
    tokens, labels = torch.randint(3, 300, (2, total), generator=generator)
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    rows = torch.arange(0, total, 2)
    return MicroBatch(tokens[None], positions, bounds, max(lengths), rows, labels[rows], len(rows))


def _hidden(pack: MicroBatch) -> _OnHost:
    values: dict[str, Any] = {field.name: getattr(pack, field.name) for field in dataclasses.fields(pack)}
    sizes: dict[str, Any] = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in values.items()
    }
    return _OnHost(**sizes, there=pack)


@torch.no_grad()
def _negative_log_p(loop: HFLoop, pack: MicroBatch) -> float:
    """Return the sum over a pack's labels, each sample by itself."""
    logits = []
    for start, end in zip(pack.cu_seqlens[:-1].tolist(), pack.cu_seqlens[1:].tolist(), strict=True):
        inputs = pack.tokens[:, start:end]
        parts = {"cu_seq_lens_q": torch.tensor([0, end - start]), "max_length_q": end - start}
        logits.append(loop.model(input_ids=inputs, use_cache=False, **parts).logits[0])
    found = torch.cat(logits).float()[pack.rows]
    return F.cross_entropy(found, pack.labels, reduction="sum").item()
