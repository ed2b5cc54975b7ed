"""Logits of a whole model on this rank's layout, through Megatron-Core's schedules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_probsft.checkpoint.hf.weights import load_hf_weights
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism


def logits_of(
    folder: Path, token_ids: list[int], layout: Parallelism, cuts: Sequence[int] | None = None
) -> torch.Tensor:
    """This rank's vocabulary shard's float32 logits `[s, V / tp]` on the last stage, `[0, 0]` elsewhere.

    cuts: where the sequences of a pack begin, and its end; None: one sequence. Groups must exist.
    """
    hf = read_hf_model(folder)
    model = build_model(hf, transformer_config(hf.shape, layout, torch.float32))
    load_hf_weights(model, hf)
    bounds = torch.tensor(cuts or [0, len(token_ids)], dtype=torch.int32)

    def forward_step(_iterator, model):
        params = PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=bounds,
            cu_seqlens_kv=bounds,
            max_seqlen_q=len(token_ids),
            max_seqlen_kv=len(token_ids),
        )
        starts = torch.repeat_interleave(bounds[:-1], bounds.diff())
        positions = (torch.arange(len(token_ids)) - starts)[None]
        output = model(torch.tensor([token_ids]), positions, None, packed_seq_params=params)
        return output, lambda output, non_loss_data=False: output

    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter([None]),
            model=[chunk.eval() for chunk in model],
            num_microbatches=1,
            seq_length=len(token_ids),
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return outputs[0][0] if parallel_state.is_pipeline_last_stage() else torch.empty(0, 0)
