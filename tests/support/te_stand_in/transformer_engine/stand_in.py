"""Which version this stands for, which arguments that version takes, and what it was given."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from packaging.version import Version

VERSION = Version(os.environ.get("TE_STAND_IN_VERSION", "2.18.0"))

calls: Counter[tuple[str, Any]] = Counter()
"""How often, by (what was called, what matters about its arguments)."""

# Arguments by function, those of 2.5 first; `name@2.6` came with 2.6.
_ARGUMENTS = {
    "Linear": (
        "sequence_parallel fuse_wgrad_accumulation tp_group tp_size get_rng_state_tracker rng_tracker_name "
        "init_method bias return_bias params_dtype parallel_mode parameters_split device ub_overlap_ag "
        "ub_overlap_rs ub_overlap_rs_dgrad ub_bulk_dgrad ub_bulk_wgrad ub_name delay_wgrad_compute "
        "symmetric_ar_type name save_original_input@2.6"
    ),
    "LayerNormLinear": (
        "eps sequence_parallel fuse_wgrad_accumulation tp_group tp_size get_rng_state_tracker init_method "
        "bias normalization return_bias params_dtype parallel_mode return_layernorm_output "
        "return_layernorm_output_gathered parameters_split zero_centered_gamma device ub_overlap_ag "
        "ub_overlap_rs ub_overlap_rs_dgrad ub_bulk_wgrad ub_bulk_dgrad ub_name delay_wgrad_compute "
        "symmetric_ar_type name"
    ),
    "GroupedLinear": (
        "sequence_parallel fuse_wgrad_accumulation tp_group tp_size get_rng_state_tracker rng_tracker_name "
        "init_method bias return_bias params_dtype parallel_mode device ub_overlap_rs ub_overlap_ag ub_name "
        "delay_wgrad_compute save_original_input@2.6 name@2.11 single_grouped_weight@2.14 "
        "single_grouped_bias@2.14"
    ),
    "RMSNorm": "eps sequence_parallel params_dtype zero_centered_gamma device dtype sm_margin",
    "DotProductAttention": (
        "num_gqa_groups attention_dropout qkv_format attn_mask_type window_size sequence_parallel tp_size "
        "get_rng_state_tracker tp_group layer_number attention_type cp_group cp_global_ranks cp_stream "
        "cp_comm_type softmax_scale softmax_type@2.8 return_max_logit@2.9 bottom_right_diagonal@2.12 "
        "name@2.16"
    ),
    "DotProductAttention.forward": (
        "qkv_format cu_seqlens_q cu_seqlens_kv cu_seqlens_q_padded cu_seqlens_kv_padded max_seqlen_q "
        "max_seqlen_kv attn_mask_type window_size checkpoint_core_attention core_attention_bias_type "
        "core_attention_bias alibi_slopes fast_zero_fill inference_params pad_between_seqs fp8_output@2.8 "
        "num_splits@2.10 bottom_right_diagonal@2.12 score_mod@2.17 score_mod_bprop@2.17 "
        "score_mod_tensors@2.17 score_mod_bprop_tensors@2.17"
    ),
    "apply_rotary_pos_emb": ("tensor_format start_positions interleaved fused cu_seqlens cp_size cp_rank"),
    "FusedAdam": (
        "lr betas eps weight_decay amsgrad bias_correction adam_w_mode capturable master_weights "
        "master_weight_dtype exp_avg_dtype exp_avg_sq_dtype use_decoupled_grad store_param_remainders "
        "set_grad_none"
    ),
}


def since(version: str) -> bool:
    """True where the version stood for is this one or newer."""
    return Version(version) <= VERSION


def check_arguments(function: str, given: dict[str, Any]) -> None:
    """Refuse, as Python would, arguments that this version of the function does not take."""
    for name in given:
        known = {word.partition("@")[0]: word.partition("@")[2] for word in _ARGUMENTS[function].split()}
        if name not in known or (known[name] and not since(known[name])):
            raise TypeError(f"{function} got an unexpected keyword argument {name!r} in {VERSION}")
