"""Rotary angles of a pack: cos and sin once per micro-batch, applied to queries and keys in one go."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings import RotaryEmbedding
from megatron.core.models.gpt import GPTModel

from megatron_probsft.models.fused_kernels import liger_rotate
from megatron_probsft.models.packs import Pack


class PackedRotary(torch.nn.Module):
    """Rotary embedding by position, instead of sequence by sequence in every layer.

    Megatron-Core's layers cut the angles for each sequence of a pack, which makes the host wait for the
    device 2 · (2 + n) times per layer (rope_utils.py:218-241). Here they are given none: the core attention
    rotates, by the cos and sin that are laid on the pack. `attach` catches the position_ids at the model's
    door, as Megatron-Core has no way to hand them to the embedding.
    """

    def __init__(self, rotary: RotaryEmbedding, dtype: torch.dtype) -> None:
        super().__init__()
        self._rotary = rotary
        self._dtype = dtype
        self._caught: tuple[torch.Tensor, Pack] | None = None

    @classmethod
    def attach(cls, model: GPTModel) -> None:
        """Let `model(tokens, position_ids, …)` use angles by position wherever it is given a pack."""
        for layer in model.decoder.layers:
            core: Any = layer.self_attention.core_attention  # type: ignore[union-attr]
            assert getattr(core, "rotates", False), f"{type(core).__name__} would leave queries unrotated"
        packed = cls(model.rotary_pos_emb, model.config.params_dtype)  # type: ignore[arg-type]
        model.rotary_pos_emb = packed  # type: ignore[assignment]
        model.register_forward_pre_hook(packed._catch, with_kwargs=True)

    def _catch(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        params = kwargs.get("packed_seq_params")
        self._caught = None if params is None else (args[1], Pack.of(params))

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        return self._rotary.get_rotary_seq_len(*args, **kwargs)

    def forward(self, max_seq_len: int, packed_seq: bool = False, **kwargs: Any) -> torch.Tensor | None:
        if not packed_seq:
            return self._rotary(max_seq_len, packed_seq=packed_seq, **kwargs)
        assert self._caught is not None
        position_ids, pack = self._caught
        if pack.rotary is None:  # the chunks of an interleaved pipeline share a micro-batch
            pack.rotary = self._cos_and_sin(position_ids.flatten(), pack)
        return None

    def _cos_and_sin(self, positions: torch.Tensor, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        if pack.positions is not None:
            positions = positions.index_select(0, pack.positions)
        frequencies = self._rotary.inv_freq
        if frequencies.device != positions.device:
            frequencies = self._rotary.inv_freq = frequencies.to(positions.device)
        angles = torch.outer(positions.to(frequencies.dtype), frequencies)
        dtype = self._dtype if liger_rotate() is None else torch.float32
        cos, sin = (part.to(dtype).repeat(1, 2) for part in (angles.cos(), angles.sin()))
        return cos, sin


def rotate(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return query `[t, heads, head_dim]` and key `[t, groups, head_dim]`, rotated to their positions.

    cos and sin are `[t, head_dim]`: as Transformer Engine, liger-kernel's computes in float32 and rounds
    once; torch's in the dtype of query, as Megatron-Core's does unfused (rope_utils.py:127).
    """
    fused = liger_rotate()
    if fused is not None:
        return fused(query, key, cos, sin)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(query, cos, sin), _rotate(key, cos, sin)


def _rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
