"""Settings that say how the model is spread over processes, and what each process keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_probsft.models.layout import Parallelism
from megatron_probsft.training.config.flag import flag

_ON_REPLICAS = "on with CUDA and data parallelism"


@dataclass(frozen=True)
class LayoutSettings(Parallelism):
    """The way the model is spread over processes, and what each of them keeps in memory."""

    tensor_model_parallel_size: int = flag(
        1, "This many processes share each layer (TP). 1 means that each process holds whole layers.", above=0
    )
    pipeline_model_parallel_size: int = flag(
        1,
        "The layers are divided into this many stages, each on processes of its own (PP). 1 means off.",
        above=0,
    )
    sequence_parallel: bool = flag(
        False, "The processes that share a layer also divide the tokens of its norms and residuals."
    )
    context_parallel_size: int = flag(
        1, "This many processes share each sequence (CP). 1 means off.", above=0
    )
    decoder_first_pipeline_num_layers: int | None = flag(
        None, "The first pipeline stage has this many layers. Without it, it has as many as the others."
    )
    decoder_last_pipeline_num_layers: int | None = flag(
        None, "The last pipeline stage has this many layers. Without it, it has as many as the others."
    )
    num_virtual_stages_per_pipeline_rank: int | None = flag(
        None,
        "Each pipeline process holds this many groups of layers and runs them in turn (the interleaved "
        "schedule). Without it, it holds one.",
    )
    expert_model_parallel_size: int = flag(
        1,
        "This many data-parallel processes share the experts of a mixture (EP). 1 means that each process "
        "holds all experts.",
        above=0,
    )
    use_distributed_optimizer: bool | None = flag(
        None,
        "The data-parallel processes divide the optimizer's states among them.",
        by_device=_ON_REPLICAS,
    )
    overlap_grad_reduce: bool | None = flag(
        None,
        "Gradients are added up over the processes while the backward pass still runs.",
        by_device=_ON_REPLICAS,
    )
    overlap_param_gather: bool | None = flag(
        None,
        "Updated weights are collected while the forward pass already runs. It needs "
        "--use-distributed-optimizer and --overlap-grad-reduce.",
        by_device=_ON_REPLICAS,
    )
    ddp_bucket_size: int | None = flag(
        None,
        "With --overlap-grad-reduce this many gradients are added up at a time. Without it, Megatron-Core "
        "takes 40 million, or a million for each data-parallel process where that is more.",
        above=0,
    )
    make_vocab_size_divisible_by: int | None = flag(
        None,
        "The rows of the embedding and of the head are padded to a multiple of this × "
        "--tensor-model-parallel-size, so that kernels see even sizes. No result and no checkpoint depends "
        "on it.",
        above=0,
        by_device="128 with CUDA, 1 without",
    )
    recompute_granularity: Literal["full", "selective"] | None = flag(
        None,
        "Activations of this kind are not kept but computed again in the backward pass, which saves memory: "
        "full is whole layers, selective is what --recompute-modules names. Without it all are kept.",
    )
    recompute_modules: list[str] = flag(
        [],
        "With --recompute-granularity selective: core_attn, layernorm, mlp, moe or moe_act. Without it, that "
        "is core_attn, whose kernels with CUDA keep little anyway: mlp or layernorm saves more.",
    )
    recompute_method: Literal["uniform", "block"] | None = flag(
        None,
        "With --recompute-granularity full: uniform keeps the input of each group of "
        "--recompute-num-layers layers; block computes that many layers of each stage again.",
    )
    recompute_num_layers: int | None = flag(
        None, "This is the number of layers that --recompute-method counts with.", above=0
    )
    distributed_timeout_minutes: float = flag(
        10,
        "A process that gives no sign of life for so long ends the run, with its name; torchrun "
        "--max-restarts then starts it again. So does a collective that waits longer than this. Work of one "
        "process that the others wait for, as tokenizing, may take any time.",
        above=0,
        finite=True,
    )


@dataclass(frozen=True)
class KernelSettings:
    """The kernels that compute the layers on a GPU."""

    gradient_accumulation_fusion: bool | None = flag(
        None,
        "The products that give weight gradients add to the float32 sums themselves.",
        by_device="on with CUDA",
    )
    attention_backend: Literal["auto", "flash", "fused", "unfused"] = flag(
        "auto",
        "Attention is computed by these kernels: flash attention, cuDNN's (fused, of Transformer Engine "
        "alone) or neither (unfused). auto leaves the choice to Transformer Engine; without it, it is flash "
        "where the GPU has it.",
    )
    tp_comm_overlap: bool = flag(
        False,
        "With --sequence-parallel the transfers between the processes that share a layer run while it "
        "computes. It needs Transformer Engine and --fixed-pack-length.",
    )
    cuda_graph_impl: Literal["none", "local", "transformer_engine", "full_iteration"] = flag(
        "none",
        "Megatron-Core's CUDA graphs. Only none is possible: they replay fixed shapes, and the number of "
        "samples in a pack differs from one to the next.",
    )
