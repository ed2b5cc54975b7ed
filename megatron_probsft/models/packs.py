"""A pack's sequences as the host knows them, and what the layers need of them.

All of it is made once per micro-batch and travels on Megatron-Core's PackedSeqParams, so that no layer asks
the device where sequences end (each such question makes the host wait for all work before it).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams

from megatron_probsft.models.context_parallel import Span, gathered_places, local_positions, local_spans
from megatron_probsft.runtime.device import current_device, host_tensor
from megatron_probsft.runtime.distributed import context_group


@dataclass(frozen=True)
class VarlenBounds:
    """The arguments of a varlen attention kernel for this rank's spans, and keys up to each one's end.

    A span's queries are the last of its keys' positions: the causal mask is aligned to the bottom right.
    """

    queries: torch.Tensor
    """cu_seqlens `[spans + 1]` int32 of the local queries."""
    keys: torch.Tensor
    """cu_seqlens `[spans + 1]` int32 of the keys; the same as queries without context parallelism."""
    longest_queries: int
    longest_keys: int


class Pack:
    """The sequences of a pack, and this context-parallel rank's part of them; tensors are on its device."""

    def __init__(self, bounds: Sequence[int], rank: int, size: int) -> None:
        """Make it of cu_seqlens, from 0 to the pack's length, for a rank of a context-parallel group."""
        self._bounds, self._rank, self._size = bounds, rank, size
        self.rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        """cos and sin of the local positions' angles, `[t, head_dim]`, where layers are to apply them."""

    @classmethod
    def here(cls, bounds: Sequence[int]) -> Pack:
        """Return the pack for this process's context-parallel rank."""
        group = context_group()
        return cls(bounds, group.rank(), group.size())

    @classmethod
    def of(cls, params: PackedSeqParams) -> Pack:
        """Return the pack that was attached; else make it, which waits for the device."""
        found = params.__dict__.get("pack")
        if found is None:
            found = cls.here(params.cu_seqlens_q.tolist())
            found.attach(params)
        return found

    def attach(self, params: PackedSeqParams) -> PackedSeqParams:
        """Return the parameters, from which `of` gives this pack from now on."""
        params.__dict__["pack"] = self
        return params

    @functools.cached_property
    def spans(self) -> list[Span]:
        """The spans of consecutive positions on this rank; without context parallelism the sequences."""
        return local_spans(self._bounds, self._rank, self._size)

    @functools.cached_property
    def positions(self) -> torch.Tensor | None:
        """This rank's positions in the pack, int64 `[t]`; None: all of them in their order."""
        if self._size == 1:
            return None
        return _on_device(local_positions(self._bounds, self._rank, self._size))

    @functools.cached_property
    def pack_order(self) -> torch.Tensor:
        """The places that `gather_pack` takes for the whole pack in its order."""
        return _on_device(self._places)

    @functools.cached_property
    def key_order(self) -> torch.Tensor:
        """The places that `gather_pack` takes for each span's keys, one span after the other."""
        return _on_device(np.concatenate([self._places[start:end] for _, end, start in self.spans]))

    @functools.cached_property
    def varlen(self) -> VarlenBounds:
        """The arguments of one attention call over all spans."""
        queries = [end - first for first, end, _ in self.spans]
        keys = [end - start for _, end, start in self.spans]
        ends = np.cumsum([[0, *queries], [0, *keys]], axis=1, dtype=np.int32)
        of_queries, of_keys = _on_device(ends).unbind()
        return VarlenBounds(of_queries, of_keys, max(queries), max(keys))

    @functools.cached_property
    def _places(self) -> np.ndarray:
        return gathered_places(self._bounds, self._size)


def _on_device(array: np.ndarray) -> torch.Tensor:
    """Copy from pinned memory, which the host does not wait for."""
    return host_tensor(array).to(current_device(), non_blocking=True)
