"""From a Hugging Face config and a parallel layout to Megatron-Core's GPTModel."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from transformers import AutoConfig, PretrainedConfig

from megatron_probsft.models.families import family_of
from megatron_probsft.models.family import Experts, Family, ModelShape
from megatron_probsft.models.local_layers import PackedRotary, local_block_spec
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object


@dataclass(frozen=True)
class Parallelism:
    """The layout of a run, under Megatron's names."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False
    context_parallel_size: int = 1
    decoder_first_pipeline_num_layers: int | None = None
    decoder_last_pipeline_num_layers: int | None = None
    num_virtual_stages_per_pipeline_rank: int | None = None
    expert_model_parallel_size: int = 1


@dataclass(frozen=True)
class HFModel:
    """A Hugging Face model folder, read: its config, its family and its sizes."""

    folder: Path
    config: PretrainedConfig
    family: Family
    shape: ModelShape


def read_hf_model(folder: str | Path) -> HFModel:
    """Read config.json of a Hugging Face folder (or of a hub id, through transformers' cache).

    Raises:
        UserError: no config.json, an unsupported architecture or an unsupported field.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        if path.exists() or str(folder).startswith((".", "/")) or str(folder).count("/") != 1:
            raise UserError(f"{folder} is not a Hugging Face model folder: it has no config.json")
        path = _download(str(folder))
    architectures = read_json_object(path / "config.json").get("architectures") or ["(none)"]
    if not isinstance(architectures, list):
        raise UserError(f"{path / 'config.json'}: architectures must be a list, got {architectures!r}")
    family = family_of(str(architectures[0]))
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # each config class has checks, and errors, of its own
        reason = " ".join(str(error).split())
        raise UserError(f"{path / 'config.json'} is refused by transformers: {reason}") from None
    return HFModel(path, config, family, family.shape(config))


def parallelism_problems(shape: ModelShape, layout: Parallelism, world_size: int) -> Iterator[str]:
    """A line for each thing that Megatron-Core would refuse late, or in riddles, with what would be right.

    Sizes below 1, which the settings' own check refuses, are passed over.
    """
    tp, pp, cp = (
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        layout.context_parallel_size,
    )
    if min(tp, pp, cp, layout.expert_model_parallel_size) < 1:
        return
    if world_size % (tp * pp * cp):
        yield (
            f"{world_size} processes do not divide into tensor × pipeline × context parallel groups of "
            f"{tp} × {pp} × {cp}: start a multiple of {tp * pp * cp} with torchrun --nproc-per-node"
        )
    for name, size in (
        ("attention heads", shape.num_attention_heads),
        ("key/value heads", shape.num_query_groups),
        ("MLP columns", shape.ffn_hidden_size),
    ):
        if size % tp:
            fits = [n for n in range(1, shape.num_query_groups + 1) if not _tp_problem(shape, n)]
            yield (
                f"the model's {size} {name} do not divide by --tensor-model-parallel-size {tp}; "
                f"possible: {', '.join(map(str, fits))}"
            )
            break
    yield from _stage_problems(shape.num_layers, layout)
    yield from _expert_problems(shape, layout, world_size)
    if layout.sequence_parallel and tp == 1:
        yield "--sequence-parallel needs --tensor-model-parallel-size of 2 or more"


def _expert_problems(shape: ModelShape, layout: Parallelism, world_size: int) -> Iterator[str]:
    ep, tp = layout.expert_model_parallel_size, layout.tensor_model_parallel_size
    count = shape.experts.count if shape.experts else 1
    if count % ep:
        fits = [n for n in range(1, count + 1) if count % n == 0]
        yield (
            f"the model's {count} expert(s) do not divide by --expert-model-parallel-size {ep}; possible: "
            f"{', '.join(map(str, fits))}"
        )
    if ep > 1 and world_size // layout.pipeline_model_parallel_size % (tp * ep):
        yield (
            f"the {world_size // layout.pipeline_model_parallel_size} processes of a pipeline stage do not "
            f"divide into tensor × expert parallel groups of {tp} × {ep}"
        )
    if shape.experts and tp > 1 and not layout.sequence_parallel:
        yield "mixture-of-experts models need --sequence-parallel with tensor parallelism"


def _stage_problems(layers: int, layout: Parallelism) -> Iterator[str]:
    pp = layout.pipeline_model_parallel_size
    first, last = layout.decoder_first_pipeline_num_layers, layout.decoder_last_pipeline_num_layers
    given = [count for count in (first, last) if count is not None]
    if not given and layers % pp:
        fits = [n for n in range(1, layers + 1) if layers % n == 0]
        yield (
            f"the model's {layers} layers do not divide by --pipeline-model-parallel-size {pp}; "
            f"possible: {', '.join(map(str, fits))}; or say how many the first or the last stage takes: "
            "--decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers"
        )
        return
    stages, rest = pp - len(given), layers - sum(given)
    if given and (pp < 2 or min(given) < 1 or rest < stages or (rest % stages if stages else rest)):
        yield (
            f"{layers} layers with {first if first is not None else 'as many'} on the first and "
            f"{last if last is not None else 'as many'} on the last of {pp} pipeline stages leave {rest} for "
            f"the other {stages}: they must divide evenly, at least one each"
        )
        return
    virtual = layout.num_virtual_stages_per_pipeline_rank
    if virtual is None:
        return
    flag = f"--num-virtual-stages-per-pipeline-rank {virtual}"
    if pp < 2 or virtual < 2:
        yield f"{flag} must be 2 or more, and needs --pipeline-model-parallel-size of 2 or more"
        return
    for count in {*given, *([rest // stages] if stages else [])}:
        if count % virtual:
            yield f"{flag} does not divide the {count} layers of a pipeline stage"


def padded_vocab_size(shape: ModelShape, tp: int) -> int:
    """The vocabulary, rounded up to a multiple of the tensor-parallel size."""
    return -(-shape.vocab_size // tp) * tp


def use_transformer_engine() -> bool:
    """Transformer Engine's layers serve on CUDA where it is installed; local layers everywhere else."""
    return torch.cuda.is_available() and importlib.util.find_spec("transformer_engine") is not None


def transformer_config(
    shape: ModelShape,
    layout: Parallelism,
    dtype: torch.dtype,
    **training: Any,
) -> TransformerConfig:
    """Megatron-Core's configuration for this model: dropout off, losses divided once by the token count.

    `training` goes to TransformerConfig as it is: recompute settings, variable_seq_lengths, ….
    """
    fused = use_transformer_engine()
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
        use_cpu_initialization=not torch.cuda.is_available(),
        perform_initialization=False,  # every weight is read from a checkpoint or a Hugging Face folder
        bias_activation_fusion=fused,
        bias_dropout_fusion=fused,
        apply_rope_fusion=fused,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        deallocate_pipeline_outputs=True,
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=torch.cuda.is_available() and not interleaved,
        **training,
    )


def _expert_settings(experts: Experts | None, layout: Parallelism, fused: bool) -> dict[str, Any]:
    """No auxiliary loss balances the experts: the objective alone is trained."""
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


def build_model(shape: ModelShape, config: TransformerConfig, *, on_meta: bool = False) -> list[GPTModel]:
    """This rank's part of the model on the current device, its weights not yet filled.

    on_meta: without storage, of local layers on any machine: for the names and shapes of its tensors.

    One chunk, or those of the interleaved pipeline's virtual stages. Needs initialised process groups.
    Collectives: none, except that tied embeddings on several pipeline stages are made equal
    (Megatron-Core all-reduces zeros into the last stage's copy).
    """
    virtual = config.virtual_pipeline_model_parallel_size
    stages = [None] if virtual is None else range(virtual)
    if on_meta:
        with torch.device("meta"):
            return [_build_chunk(shape, config, local_block_spec(config, stage), stage) for stage in stages]
    chunks = [_build_chunk(shape, config, _block_spec(config, stage), stage) for stage in stages]
    return [chunk.to(torch.cuda.current_device()) for chunk in chunks]


def _build_chunk(
    shape: ModelShape,
    config: TransformerConfig,
    layers: TransformerBlockSubmodules | ModuleSpec,
    vp_stage: int | None,
) -> GPTModel:
    where: dict[str, Any] = {"ignore_virtual": False, "vp_stage": vp_stage}
    model = GPTModel(
        config=config,
        transformer_layer_spec=layers,  # type: ignore[arg-type]
        vocab_size=padded_vocab_size(shape, config.tensor_model_parallel_size),
        max_sequence_length=shape.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(**where),
        post_process=parallel_state.is_pipeline_last_stage(**where),
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
        vp_stage=vp_stage,
    )
    rotary: Any = model.rotary_pos_emb
    rotary.inv_freq = torch.tensor(shape.rope_frequencies, device="cpu")  # moved where it is used
    if not use_transformer_engine():
        PackedRotary.attach(model)
    return model


def _block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules | ModuleSpec:
    if use_transformer_engine():
        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
    return local_block_spec(config, vp_stage)


def _tp_problem(shape: ModelShape, tp: int) -> bool:
    return any(
        size % tp for size in (shape.num_attention_heads, shape.num_query_groups, shape.ffn_hidden_size)
    )


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id!r} is neither a folder with config.json nor a model the hub could give "
            f"({type(error).__name__}); give a local folder or check the network"
        ) from error
