"""Settings that say how the model is spread over processes, and what each process keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_probsft.models.layout import Parallelism
from megatron_probsft.training.config.flag import flag


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
    use_distributed_optimizer: bool = flag(
        False, "The data-parallel processes divide the optimizer's states among them.", resume="fixed"
    )
    overlap_grad_reduce: bool = flag(
        False, "Gradients are added up over the processes while the backward pass still runs."
    )
    overlap_param_gather: bool = flag(
        False,
        "Updated weights are collected while the forward pass already runs. It needs "
        "--use-distributed-optimizer and --overlap-grad-reduce.",
    )
    recompute_granularity: Literal["full", "selective"] | None = flag(
        None,
        "Activations of this kind are not kept but computed again in the backward pass, which saves memory: "
        "full is whole layers, selective is attention. Without it all are kept.",
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
