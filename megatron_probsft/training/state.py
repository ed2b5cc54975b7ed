"""Model, optimizer and learning-rate schedule of a run, from Megatron-Core's parts."""

from __future__ import annotations

from collections.abc import Iterator
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

from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime.megatron_patches.apply import patch_optimizer
from megatron_probsft.training.config.config import TrainConfig


@dataclass
class TrainState:
    """What a checkpoint holds, beside the configuration."""

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


def build_gpt(config: TrainConfig, hf: HFModel) -> list[GPTModel]:
    """This rank's part of the model, in chunks, its weights not yet filled."""
    megatron = transformer_config(
        hf.shape,
        config.layout(),
        torch.bfloat16 if config.bf16 else torch.float32,
        finalize_model_grads_func=finalize_model_grads,
        recompute_granularity=config.recompute_granularity,
        recompute_method=config.recompute_method,
        recompute_num_layers=config.recompute_num_layers,
        variable_seq_lengths=not config.packing,  # micro-batches differ in length: stages tell each other
    )
    return build_model(hf, megatron)


def build_train_state(config: TrainConfig, gpt: list[GPTModel], train_iters: int) -> TrainState:
    """Wrap the model (its weights filled: main weights are copied here) for data-parallel training.

    Gradients accumulate and are reduced in float32; they are divided once, by the global batch's number of
    supervised tokens (Megatron-Core's per-token loss), so nothing averages over ranks or micro-batches.
    """
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=config.use_distributed_optimizer,
        overlap_grad_reduce=config.overlap_grad_reduce,
        overlap_param_gather=config.overlap_param_gather,
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
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            lr=config.lr,
            min_lr=config.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            clip_grad=config.clip_grad,
            bf16=config.bf16,
            params_dtype=shared.params_dtype,
            use_distributed_optimizer=config.use_distributed_optimizer,
            overlap_param_gather=config.overlap_param_gather,
        ),
        model,  # type: ignore[arg-type]
        use_gloo_process_groups=False,
    )
    patch_optimizer(optimizer)
    shared.grad_scale_func = optimizer.scale_loss
    return TrainState(model, optimizer, _scheduler(config, optimizer, train_iters))


def data_parallel() -> tuple[int, int]:
    """(rank, size) in the data-parallel group."""
    return parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()


def schedule_problems(config: TrainConfig, train_iters: int) -> Iterator[str]:
    """What does not fit into a run of so many steps, a line each."""
    warmup = _warmup(config, train_iters)
    if 0 < warmup >= train_iters:
        yield f"--lr-warmup-iters {warmup} leaves nothing of the run's {train_iters} steps"
    elif config.lr_wsd_decay_iters is not None and config.lr_wsd_decay_iters > train_iters - warmup:
        yield (
            f"--lr-wsd-decay-iters {config.lr_wsd_decay_iters} is more than the {train_iters - warmup} steps "
            "after warmup"
        )


def _warmup(config: TrainConfig, train_iters: int) -> int:
    if config.lr_warmup_fraction is None:
        return config.lr_warmup_iters
    return int(config.lr_warmup_fraction * train_iters)


def _scheduler(
    config: TrainConfig, optimizer: MegatronOptimizer, train_iters: int
) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=_warmup(config, train_iters),
        lr_decay_steps=max(train_iters, 1),  # a run of 0 steps only reads and writes a model
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=max(train_iters, 1),
        wd_incr_style="constant",
        wsd_decay_steps=config.lr_wsd_decay_iters,
        lr_wsd_decay_style=config.lr_wsd_decay_style,
    )
