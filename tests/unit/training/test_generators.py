"""Random generators of a checkpoint on the kind of device that it comes from, and on the other."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from megatron_probsft.training.start import resume


@pytest.mark.parametrize("saved_on", ["cuda", "cpu"])
def test_a_checkpoint_of_the_other_kind_of_device_continues(
    saved_on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's generator has 16 bytes of state; the CPU's cannot take them, nor the other way round."""
    states = {
        "cpu": {"cuda": torch.get_rng_state(), "megatron": {"a": torch.get_rng_state()}},
        "cuda": {"cuda": torch.zeros(16, dtype=torch.uint8), "megatron": {"a": torch.zeros(16)}},
    }[saved_on]
    states |= {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    here = torch.get_rng_state() if saved_on == "cuda" else torch.ones(16, dtype=torch.uint8)
    monkeypatch.setattr(resume, "random_state", lambda: here)
    monkeypatch.setattr(resume, "_tracker", lambda: pytest.fail("its states are another device's"))
    assert not resume._restore_generators(states)
