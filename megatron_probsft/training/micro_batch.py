"""One pack of samples as the model takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from megatron_probsft.models.packs import Pack
from megatron_probsft.runtime.device import current_device


@dataclass(frozen=True)
class MicroBatch:
    """One pack, on the host until `on_device`; s is the step's pack length, s' = s / cp this rank's part.

    tokens `[1, s']`, position_ids `[1, s]` int64; cu_seqlens `[n + 1]` int32, of the whole pack; rows `[T]`
    int64, the supervised positions among the s'; labels `[T]` int64, their next tokens.
    """

    tokens: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    rows: torch.Tensor
    labels: torch.Tensor
    supervised_tokens: int
    """Their number in the whole pack, over the context-parallel ranks that share it."""
    weights: torch.Tensor | None = None
    """`[T]` float32, of the labels, whose sum over the step is the step's number of labels; None: all 1."""
    bounds: tuple[int, ...] | None = None
    """cu_seqlens as the host knows them; None: it asks the device."""

    def pack(self) -> Pack:
        """Return the pack as the layers want to know it: made anew, since it may hold tensors per token."""
        return Pack.here(self.cu_seqlens.tolist() if self.bounds is None else self.bounds)

    def on_device(self) -> MicroBatch:
        """Return it on the current device; the host does not wait for the copies.

        Six of 64 KiB for a pack of 8,192 tokens: estimated 20 µs of a GPU's time at 25 GB/s, which no stream
        of their own could win back.
        """
        device = current_device()
        return self.with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> MicroBatch:
        """Return it with what `change` makes of each tensor."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **{name: change(value) for name, value in tensors.items()})
