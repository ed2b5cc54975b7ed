"""Model, optimizer and learning-rate schedule of a run, from Megatron-Core's parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.enums import AttnBackend

from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.megatron_patches.apply import patch_linear_layers, patch_optimizer
from megatron_probsft.training.config.layout import KernelSettings, LayoutSettings
from megatron_probsft.training.config.optimizer import OptimizerSettings, PrecisionSettings, ScheduleSettings

_DEFAULT = KernelSettings()


@dataclass
class TrainState:
    """The state that a checkpoint holds, beside the configuration."""

    model: list[DistributedDataParallel]
    """This rank's chunks: one, or --num-virtual-stages-per-pipeline-rank of them."""
    optimizer: MegatronOptimizer
    scheduler: OptimizerParamScheduler
    iteration: int = 0
    consumed_samples: int = 0

    @property
    def gpt(self) -> list[GPTModel]:
        """The chunks without their data-parallel wrapper."""
        return [chunk.module for chunk in self.model]  # type: ignore[misc]

    def gather_weights(self) -> None:
        """Make this rank's weights whole, before they are read: --overlap-param-gather does it in forward.

        Collective over the data-parallel group where that is on.
        """
        for chunk in self.model:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)


def build_gpt(
    hf: HFModel,
    layout: LayoutSettings,
    precision: PrecisionSettings,
    kernels: KernelSettings = _DEFAULT,
    *,
    packing: bool,
) -> list[GPTModel]:
    """Return this rank's part of the model, in chunks; its weights are not yet filled."""
    if kernels.gradient_accumulation_fusion:
        patch_linear_layers()
    megatron = transformer_config(
        hf.shape,
        layout,
        torch.bfloat16 if precision.bf16 else torch.float32,
        finalize_model_grads_func=finalize_model_grads,
        recompute_granularity=layout.recompute_granularity,
        recompute_method=layout.recompute_method,
        recompute_num_layers=layout.recompute_num_layers,
        recompute_modules=layout.recompute_modules or None,
        gradient_accumulation_fusion=bool(kernels.gradient_accumulation_fusion),
        attention_backend=AttnBackend[kernels.attention_backend],
        tp_comm_overlap=kernels.tp_comm_overlap,
        fp8=precision.fp8_format,
        fp8_recipe=precision.fp8_recipe or "delayed",
        variable_seq_lengths=not packing,  # micro-batches differ in length: stages tell each other
    )
    return build_model(hf, megatron, vocab_divisible_by=layout.make_vocab_size_divisible_by)


def build_train_state(
    gpt: list[GPTModel],
    layout: LayoutSettings,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    train_iters: int,
) -> TrainState:
    """Wrap the model for data-parallel training; its weights are filled, since main weights are copied here.

    Gradients accumulate and are reduced in float32; they are divided once, by the global batch's number of
    supervised tokens (Megatron-Core's per-token loss), so nothing averages over ranks or micro-batches.
    """
    model = _wrap(gpt, layout)
    shared = gpt[0].config
    megatron = get_megatron_optimizer(
        OptimizerConfig(
            lr=optimizer.lr,
            min_lr=schedule.min_lr,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.adam_beta1,
            adam_beta2=optimizer.adam_beta2,
            adam_eps=optimizer.adam_eps,
            clip_grad=optimizer.clip_grad,
            bf16=shared.bf16,
            params_dtype=shared.params_dtype,
            use_distributed_optimizer=bool(layout.use_distributed_optimizer),
            overlap_param_gather=bool(layout.overlap_param_gather),
        ),
        model,  # type: ignore[arg-type]
        use_gloo_process_groups=False,
    )
    patch_optimizer(megatron)
    shared.grad_scale_func = megatron.scale_loss
    return TrainState(model, megatron, _scheduler(optimizer, schedule, megatron, train_iters))


def _wrap(gpt: list[GPTModel], layout: LayoutSettings) -> list[DistributedDataParallel]:
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=bool(layout.use_distributed_optimizer),
        overlap_grad_reduce=bool(layout.overlap_grad_reduce),
        overlap_param_gather=bool(layout.overlap_param_gather),
        bucket_size=layout.ddp_bucket_size,
        average_in_collective=False,
    )
    shared = gpt[0].config
    # As Megatron-LM: the first chunk's gradients are the last ones made, so only they need small buckets.
    model = [
        DistributedDataParallel(shared, ddp, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(gpt)
    ]
    no_sync = [chunk.no_sync for chunk in model]
    shared.no_sync_func = no_sync if len(model) > 1 else no_sync[0]  # type: ignore[assignment]
    return model


def join_layout(layout: LayoutSettings, seed: int) -> None:
    """Join the processes in the groups of the layout; see `distributed.initialize`. Collective over all."""
    distributed.initialize(
        layout.tensor_model_parallel_size,
        layout.pipeline_model_parallel_size,
        layout.context_parallel_size,
        expert_model_parallel_size=layout.expert_model_parallel_size,
        virtual_stages=layout.num_virtual_stages_per_pipeline_rank,
        seed=seed,
    )


def data_parallel() -> tuple[int, int]:
    """Return this rank's number in the data-parallel group, and the size of the group."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def _scheduler(
    optimizer: OptimizerSettings, schedule: ScheduleSettings, megatron: MegatronOptimizer, train_iters: int
) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        megatron,
        init_lr=0.0,
        max_lr=optimizer.lr,
        min_lr=schedule.min_lr,
        lr_warmup_steps=schedule.warmup_steps(train_iters),
        lr_decay_steps=max(train_iters, 1),  # a run of 0 steps only reads and writes a model
        lr_decay_style=schedule.lr_decay_style,
        start_wd=optimizer.weight_decay,
        end_wd=optimizer.weight_decay,
        wd_incr_steps=max(train_iters, 1),
        wd_incr_style="constant",
        wsd_decay_steps=schedule.lr_wsd_decay_iters,
        lr_wsd_decay_style=schedule.lr_wsd_decay_style,
    )
