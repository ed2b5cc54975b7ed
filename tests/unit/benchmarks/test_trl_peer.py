"""TRL's trainer as a peer: it takes the samples that it is given, in their order, with its own loss."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from benchmarks.trl_peer import TRLPeer


@pytest.mark.size("test")
@pytest.mark.filterwarnings("ignore")  # what TRL, accelerate and datasets say of each other
def test_first_loss_is_the_mean_over_the_first_steps_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in (9, 4, 12, 7):
        ids = torch.randint(3, 300, (length,), generator=generator)
        samples.append((ids, torch.where(torch.arange(length) >= length // 2, ids, -100)))
    args = argparse.Namespace(
        model=str(tiny_llama), micro_batch_size=1, global_batch_size=2, max_length=64
    )  # fmt: skip
    peer = TRLPeer([samples[:2], samples[2:]], 1e-5, args, tmp_path)
    before: list[int] = []
    seconds = peer.train(before.append)
    assert before == [0, 1]
    assert len(seconds) == 2
    assert all(math.isfinite(one) and one > 0 for one in seconds)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    total = torch.zeros(())
    for ids, labels in samples[:2]:
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        total += F.cross_entropy(logits, labels[1:], reduction="sum")
    tokens = sum(int((labels[1:] >= 0).sum()) for _, labels in samples[:2])
    assert peer.first_loss == pytest.approx(total.item() / tokens, rel=0.01)
