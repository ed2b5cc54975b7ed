"""Megatron-Core's named random states, which are the CUDA generator's, can be the CPU generator's.

What: without a GPU the states are the CPU generator's, in the tracker and in recomputation.
Why: there is no CUDA generator; and what runs on the CPU draws from the CPU's.
Upstream: Megatron-Core, tensor_parallel/random.py: `CudaRNGStatesTracker` (line 229),
    `_get_cuda_rng_state` (104), `_set_cuda_rng_state` (135).
Versions: Megatron-Core 0.19.2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from megatron_probsft.runtime.megatron_patches import replace


def apply() -> None:
    """Replace the tracker and both functions for this process."""
    from megatron.core.tensor_parallel import random

    class CpuRNGStatesTracker(random.CudaRNGStatesTracker):
        """The same named states, of the CPU generator."""

        @contextlib.contextmanager
        def fork(self, name: str = "model-parallel-rng") -> Iterator[None]:
            if name not in self.states_:
                raise KeyError(f"no RNG state is named {name!r}")
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    replace(random, "CudaRNGStatesTracker", CpuRNGStatesTracker)
    replace(
        random,
        "_get_cuda_rng_state",
        lambda device="cpu", clone=False, graph_safe=False: torch.get_rng_state(),
    )
    replace(
        random,
        "_set_cuda_rng_state",
        lambda state, device=-1, graph_safe=False: torch.set_rng_state(state),
    )
