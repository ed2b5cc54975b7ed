"""Attention, rotation and cut packs without Transformer Engine, against dense references and Megatron-Core.

What runs on CUDA alone is stood in for: torch's varlen attention by a dense one that takes its arguments.
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd
from megatron.core.transformer.enums import AttnBackend

from megatron_probsft.models import attention
from megatron_probsft.models.context_parallel import gathered_places, local_positions
from megatron_probsft.models.packs import Pack
from megatron_probsft.models.rotary import PackedRotary, rotate
from megatron_probsft.runtime.errors import UserError

LENGTHS = (8, 24, 16)
BOUNDS = (0, 8, 32, 48)
HEADS, GROUPS, SIZE = 4, 2, 8
GPU = torch.device("cuda", 0)


def _dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor, scale: float | None) -> Any:
    """Attention of [t, heads, d] to the keys that `seen` [t, keys] lets each query see."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def _varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor, max_q: int, max_k: int, *, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> torch.Tensor:  # fmt: skip
    """torch's varlen_attn as its documentation says, causal masks aligned to the bottom right."""
    assert window_size == (-1, 0)
    assert enable_gqa
    return _varlen_of_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size
    )


def _varlen_of_2_11(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor, max_q: int, max_k: int, *, scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:  # fmt: skip
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert window_size == (-1, 0)
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    outputs = []
    for q0, q1, k0, k1 in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        seen = torch.ones(int(q1 - q0), int(k1 - k0), dtype=torch.bool).tril(int(k1 - k0) - int(q1 - q0))
        outputs.append(_dense(query[q0:q1], key[k0:k1], value[k0:k1], seen, scale))
    return torch.cat(outputs)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "current_device", lambda: GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    attention._flash_attention.cache_clear()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_gathered_parts_are_put_in_order(size: int) -> None:
    parts = np.concatenate([local_positions(BOUNDS, rank, size) for rank in range(size)])
    assert parts[gathered_places(BOUNDS, size)].tolist() == list(range(BOUNDS[-1]))


@pytest.mark.parametrize("varlen", [_varlen, _varlen_of_2_11])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_one_call_for_all_spans(size: int, varlen: Any, gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks' outputs, and their parts of every gradient, add up to those of dense attention."""
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen)
    torch.manual_seed(size)
    shapes = [(BOUNDS[-1], heads, SIZE) for heads in (HEADS, GROUPS, GROUPS)]
    whole = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    upstream = torch.randn(shapes[0], dtype=torch.float64)
    sequence = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    seen = (sequence[:, None] == sequence).tril()
    expected = _dense(whole[0], whole[1], whole[2], seen, 0.3)
    gradients = torch.autograd.grad(expected, whole, upstream)

    flash = attention._flash_attention()
    parts = [torch.from_numpy(local_positions(BOUNDS, rank, size)) for rank in range(size)]
    total: list[torch.Tensor] = [torch.zeros_like(each) for each in whole]
    for rank, here in enumerate(parts):
        pack = Pack(BOUNDS, rank, size)
        query, key, value = whole
        if size > 1:
            key, value = (each[torch.cat(parts)][pack.key_order] for each in (key, value))
        output = flash(query[here], key, value, pack, 0.3)
        torch.testing.assert_close(output, expected[here], rtol=1e-12, atol=1e-12)
        for sum_, part in zip(total, torch.autograd.grad(output, whole, upstream[here]), strict=True):
            sum_ += part
    torch.testing.assert_close(total, list(gradients), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 2])
def test_rotation_is_megatrons(size: int, dtype: torch.dtype) -> None:
    frequencies = 10000.0 ** (-torch.arange(0, SIZE, 2) / SIZE)
    angles = torch.outer(torch.arange(max(LENGTHS)).float(), frequencies).repeat(1, 2)[:, None, None]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    for rank in range(size):
        pack = Pack(BOUNDS, rank, size)
        rotary: Any = SimpleNamespace(inv_freq=frequencies)
        cos, sin = PackedRotary(rotary, dtype)._cos_and_sin(positions, pack)
        heads = [torch.randn(BOUNDS[-1] // size, number, SIZE).to(dtype) for number in (HEADS, GROUPS)]
        group: Any = SimpleNamespace(size=lambda: size, rank=lambda rank=rank: rank)
        expected = [
            _apply_rotary_pos_emb_thd(each, torch.tensor(BOUNDS), angles, cp_group=group) for each in heads
        ]
        for ours, theirs in zip(rotate(heads[0], heads[1], cos, sin), expected, strict=True):
            assert torch.equal(ours, theirs)


def _config(backend: AttnBackend, dtype: torch.dtype = torch.bfloat16, head_dim: int = 64) -> Any:
    return SimpleNamespace(attention_backend=backend, params_dtype=dtype, kv_channels=head_dim)


def test_which_attention_on_a_gpu(gpu: None) -> None:
    flash = attention.flash_attention_for(_config(AttnBackend.auto))
    assert flash is not None
    assert attention.flash_attention_for(_config(AttnBackend.flash)) is flash
    # float32, and heads that its kernels don't have
    assert attention.flash_attention_for(_config(AttnBackend.auto, torch.float32)) is None
    assert attention.flash_attention_for(_config(AttnBackend.auto, head_dim=512)) is None
    assert attention.flash_attention_for(_config(AttnBackend.local)) is None
    with pytest.raises(UserError, match="flash needs"):
        attention.flash_attention_for(_config(AttnBackend.flash, torch.float32))


def test_which_attention_on_a_cpu() -> None:
    for backend in (AttnBackend.auto, AttnBackend.unfused, AttnBackend.local):
        assert attention.flash_attention_for(_config(backend)) is None
    with pytest.raises(UserError, match=r"flash needs a GPU of compute capability 8\.0"):
        attention.flash_attention_for(_config(AttnBackend.flash))
    with pytest.raises(UserError, match="fused is Transformer Engine's"):
        attention.flash_attention_for(_config(AttnBackend.fused))


@pytest.mark.parametrize(("capability", "activated"), [((9, 0), ["FA3"]), ((8, 0), []), ((10, 0), [])])
def test_hoppers_kernels_where_they_are_installed(
    capability: tuple[int, int], activated: list[str], gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "flash_attn_interface" or None)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", calls.append)
    attention._flash_attention()
    assert calls == activated
