"""What most fine-tuning scripts do at their best: transformers, padding-free attention, Liger where it is.

The packs are this trainer's, without padding, and attention is told where samples begin: flash-attn's kernels
where they are installed, else torch's `varlen_attn`, on a CPU a loop over samples.
Weights and Adam's states are in bfloat16, which costs least memory and time; this trainer's are in float32.
"""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from megatron_probsft.training.batches import StepBatch

ATTENTION = "torch_varlen"


class HFLoop:
    """A random model of a folder's config.json, its optimizer, and one step over a batch."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

        liger = importlib.util.find_spec("liger_kernel") is not None and device == "cuda"
        flash = importlib.util.find_spec("flash_attn") is not None and device == "cuda"
        AttentionInterface.register(ATTENTION, _attention)
        if liger:
            from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
                apply_liger_kernel_to_qwen2,
            )

            apply_liger_kernel_to_qwen2(fused_linear_cross_entropy=False)  # the loss is called below
        config = AutoConfig.from_pretrained(folder)
        kind = "flash_attention_2" if flash else ATTENTION
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=kind)
        self.model: Any = model.train()
        self.name = f"transformers {'with' if liger else 'without'} Liger, {kind}"
        self._liger = liger
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=device == "cuda"
        )

    def step(self, batch: StepBatch) -> torch.Tensor:
        """Do the step and return its loss, the mean over its supervised tokens."""
        total = torch.zeros((), device=self.model.device)
        supervised = sum(one.supervised_tokens for one in batch.micro_batches)
        for one in (each.on_device() for each in batch.micro_batches):
            states = self.model.model(
                input_ids=one.tokens, position_ids=one.position_ids, use_cache=False,
                cu_seq_lens_q=one.cu_seqlens, cu_seq_lens_k=one.cu_seqlens,
                max_length_q=one.max_seqlen, max_length_k=one.max_seqlen,
            ).last_hidden_state[0]  # fmt: skip
            labels = torch.full_like(one.tokens[0], -100)
            labels[one.rows] = one.labels
            loss = self._loss(states, labels) / supervised
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _loss(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self._liger:
            from benchmarks.gpu.kit.head_peers import liger_triton

            return liger_triton(states, self.model.lm_head.weight, labels)
        return F.cross_entropy(self.model.lm_head(states).float(), labels, reduction="sum")


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_: Any,
    **passed: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention of `[1, heads, s, d]` over samples that `cu_seq_lens_q` separates."""
    bounds, longest = passed["cu_seq_lens_q"], passed["max_length_q"]
    if not query.is_cuda:
        parts = zip(*(states.split(bounds.diff().tolist(), 2) for states in (query, key, value)), strict=True)
        found = [F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts]
        return torch.cat(found, 2).transpose(1, 2), None
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    # Versions say it differently: 2.10 has is_causal, 2.11 and newer a window; grouped heads came later.
    causal: dict[str, Any] = {"is_causal": True} if "is_causal" in parameters else {"window_size": (-1, 0)}
    if "enable_gqa" in parameters:
        causal["enable_gqa"] = True
    else:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, 1) for states in (key, value))
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    found = varlen_attn(query, key, value, bounds, bounds, longest, longest, **causal)
    return found[None], None  # type: ignore[index]
