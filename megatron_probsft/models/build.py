"""Megatron-Core's GPTModel for a Hugging Face model on a parallel layout."""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build

from megatron_probsft.models.family import Experts, Family, ModelShape
from megatron_probsft.models.fused_kernels import fuse_swiglu
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.models.local_layers import LocalBackend, RMSNorm, local_layer_spec
from megatron_probsft.models.rotary import PackedRotary
from megatron_probsft.runtime.device import current_device, has_gpu
from megatron_probsft.runtime.imports.transformer_engine_import import broken_transformer_engine


def padded_vocab_size(shape: ModelShape, tp: int, divisible_by: int | None = None) -> int:
    """The number of rows of the vocabulary, rounded up to a multiple of divisible_by × tp, as in Megatron.

    divisible_by: None is 1: a conversion pads no further than the tensor-parallel size asks for.
    """
    multiple = (divisible_by or 1) * tp
    return -(-shape.vocab_size // multiple) * multiple


def use_transformer_engine() -> bool:
    """True on CUDA where Transformer Engine is installed: its layers serve there, local layers elsewhere.

    Raises:
        UserError: it is installed, but Megatron-Core could not import it.
    """
    if not has_gpu():
        return False
    if not HAVE_TE:
        _refuse_broken_transformer_engine()
    return HAVE_TE


def transformer_engine_computes(dtype: torch.dtype) -> bool:
    """True where Transformer Engine's layers serve weights of this type.

    In float32 local layers do, everywhere: its attention over packs has none up to version 2.10, and a
    quadratic one after.
    """
    return dtype != torch.float32 and use_transformer_engine()


@functools.cache
def _refuse_broken_transformer_engine() -> None:
    """Tell why Transformer Engine cannot be imported; it swallows most reasons itself, and Megatron all."""
    if importlib.util.find_spec("transformer_engine") is None:
        return
    try:
        importlib.import_module("transformer_engine.pytorch.fp8")  # which Megatron-Core imports
    except Exception as error:  # libraries of another version, or missing ones, raise anything
        raise broken_transformer_engine(error) from None
    raise AssertionError("Transformer Engine can be imported, but Megatron-Core did not")


def transformer_config(
    shape: ModelShape,
    layout: Parallelism,
    dtype: torch.dtype,
    **training: Any,
) -> TransformerConfig:
    """Megatron-Core's configuration for this model: dropout off, losses divided once by the token count.

    `training` goes to TransformerConfig as it is: recompute settings, FP8, variable_seq_lengths and the like.
    """
    fused = transformer_engine_computes(dtype)
    interleaved = layout.num_virtual_stages_per_pipeline_rank is not None
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        add_bias_linear=False,
        add_qkv_bias=shape.qkv_bias,
        qk_layernorm=shape.qk_norm,
        moe_token_dispatcher_type="alltoall",  # variable_seq_lengths asks for it, of dense models too
        **_expert_settings(shape.experts, layout, fused),
        gated_linear_unit=True,
        activation_func=F.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=layout.num_virtual_stages_per_pipeline_rank,
        num_layers_in_first_pipeline_stage=layout.decoder_first_pipeline_num_layers,
        num_layers_in_last_pipeline_stage=layout.decoder_last_pipeline_num_layers,
        context_parallel_size=layout.context_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        calculate_per_token_loss=True,
        use_cpu_initialization=not has_gpu(),
        perform_initialization=False,  # every weight is read from a checkpoint or a Hugging Face folder
        bias_activation_fusion=has_gpu(),  # SwiGLU's; it needs no Transformer Engine
        bias_dropout_fusion=fused,
        apply_rope_fusion=fused,
        masked_softmax_fusion=False,
        deallocate_pipeline_outputs=True,
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=has_gpu() and not interleaved,
        **training,
    )


def _expert_settings(experts: Experts | None, layout: Parallelism, fused: bool) -> dict[str, Any]:
    """The settings of a mixture. No auxiliary loss balances the experts: the objective alone is trained."""
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.count,
        "moe_router_topk": experts.per_token,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        # The softmax over the chosen experts' logits is that over all of them, scaled to sum to 1.
        "moe_router_pre_softmax": not experts.normalized,
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": fused,
        "expert_model_parallel_size": layout.expert_model_parallel_size,
        "expert_tensor_parallel_size": layout.tensor_model_parallel_size,
    }


def build_model(
    hf: HFModel, config: TransformerConfig, *, on_meta: bool = False, vocab_divisible_by: int | None = None
) -> list[GPTModel]:
    """This rank's part of the model on the current device, its weights not yet filled.

    on_meta: the model has no storage, and local layers on any machine: for its tensors' names and shapes.
    vocab_divisible_by: see `padded_vocab_size`.

    The list holds one chunk, or one for each virtual stage of the interleaved pipeline. Process groups must
    exist.
    Collectives: none, except that tied embeddings on several pipeline stages are made equal (Megatron-Core
    all-reduces zeros into the last stage's copy).
    """
    virtual = config.virtual_pipeline_model_parallel_size
    stages = [None] if virtual is None else range(virtual)
    rows = padded_vocab_size(hf.shape, config.tensor_model_parallel_size, vocab_divisible_by)
    if on_meta:
        config = copy.copy(config)
        config.use_cpu_initialization = True  # else Megatron-Core names the GPU, over torch's context
        with torch.device("meta"):
            return [
                _build_chunk(hf, config, _local_block(hf.family, config, stage), stage, rows)
                for stage in stages
            ]
    has_te_layers = transformer_engine_computes(config.params_dtype)
    if not has_te_layers:
        fuse_swiglu()
    block = _transformer_engine_layer if has_te_layers else _local_block
    chunks = [_build_chunk(hf, config, block(hf.family, config, stage), stage, rows) for stage in stages]
    return [chunk.to(current_device()) for chunk in chunks]


def _build_chunk(
    hf: HFModel,
    config: TransformerConfig,
    layers: TransformerBlockSubmodules | ModuleSpec,
    vp_stage: int | None,
    vocabulary_rows: int,
) -> GPTModel:
    shape = hf.shape
    where: dict[str, Any] = {"ignore_virtual": False, "vp_stage": vp_stage}
    model = GPTModel(
        config=config,
        transformer_layer_spec=layers,  # type: ignore[arg-type]
        vocab_size=vocabulary_rows,
        max_sequence_length=shape.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**where),
        post_process=parallel_state.is_pipeline_last_stage(**where),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
        vp_stage=vp_stage,
    )
    rotary: Any = model.rotary_pos_emb
    rotary.inv_freq = torch.tensor(shape.rope_frequencies, device="cpu")  # moved where it is used
    if not transformer_engine_computes(config.params_dtype):
        PackedRotary.attach(model)
    return model


def _local_block(
    family: Family, config: TransformerConfig, vp_stage: int | None
) -> TransformerBlockSubmodules:
    """A spec for each layer that this pipeline stage holds, and the norm for the end of the last one."""
    layer = local_layer_spec(config)
    if family.layers:
        layer = family.layers(layer, LocalBackend())
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage), layer_norm=RMSNorm
    )


def _transformer_engine_layer(family: Family, config: TransformerConfig, vp_stage: int | None) -> ModuleSpec:
    """One spec for all layers; Megatron-Core counts them and adds the norm."""
    layer = get_gpt_layer_with_transformer_engine_spec(
        num_experts=config.num_moe_experts,
        moe_grouped_gemm=config.moe_grouped_gemm,
        qk_layernorm=config.qk_layernorm,
    )
    if family.layers:
        layer = family.layers(layer, TESpecProvider())
    return layer
