"""The reasons to refuse settings whatever the model, the data and the objective are."""

from __future__ import annotations

import datetime
import importlib.util
import math
import os
from collections.abc import Callable, Iterator

from megatron_probsft.data.text.named_templates import check_template_name
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.config import Setting, TrainConfig, group_types, settings
from megatron_probsft.training.config.flag import dashed, limit_problems, meant
from megatron_probsft.training.throughput.cards import ESTIMATED_IN_BF16, card_of

_RECOMPUTED = ("core_attn", "layernorm", "mlp", "moe", "moe_act")
NO_START = "give --hf-model (start from a Hugging Face model) or --load (resume a run)"


def settings_problems(config: TrainConfig) -> Iterator[str]:
    """Yield a line for each thing that is wrong whatever the model, the data and the objective are."""
    for group in group_types():
        yield from group_problems(config, group)


def group_problems(config: TrainConfig, group: str) -> Iterator[str]:
    """Yield those of one group: first what its fields refuse, then what the rules between fields do."""
    for setting in settings().values():
        if setting.group == group:
            yield from _field_problems(config, setting)
    if group in _RULES:
        yield from _RULES[group](config)


def _field_problems(config: TrainConfig, setting: Setting) -> Iterator[str]:
    value, flag = config.value(setting.name), setting.flag
    if value != setting.default:
        if flag.excludes and config.value(flag.excludes) != settings()[flag.excludes].default:
            yield f"give one of --{dashed(setting.name)} and --{dashed(flag.excludes)}"
        if flag.belongs_to and config.value(flag.belongs_to) == settings()[flag.belongs_to].default:
            yield f"--{dashed(setting.name)} belongs to --{dashed(flag.belongs_to)}"
    yield from limit_problems(setting.name, value, flag.limits)


def _model(config: TrainConfig) -> Iterator[str]:
    model = config.model
    if model.hf_model is None and model.load is None:
        yield NO_START
    both = model.hf_model is not None and model.load is not None
    if both and (model.load != config.checkpoint.save or model.finetune):
        yield (
            "--hf-model and --load together (resume what is there, or start) need --load to be the same as "
            "--save, without --finetune"
        )
    allowed = ["data", *(dashed(one.name) for one in settings().values() if one.flag.resume == "same")]
    for name in model.allow_changed:
        if dashed(name) not in allowed:
            yield f"--allow-changed {name} is none of {', '.join(allowed)}; {meant(name, allowed)}"


def _data(config: TrainConfig) -> Iterator[str]:
    data = config.data
    if not data.data and config.preview.world_size is None:
        yield "--data is missing: .jsonl or .parquet files to train on"
    for file in sorted({file for file in data.valid_data if data.valid_data.count(file) > 1}):
        yield f"--valid-data names {file} more than once"
    weights = data.data_weights
    if weights is not None and not (
        len(weights) == len(data.data) and all(0 < weight < math.inf for weight in weights)
    ):
        yield (
            f"--data-weights takes a number above 0 for each of the {len(data.data)} of --data, got {weights}"
        )
    try:
        check_template_name(data.template)
    except UserError as error:
        yield str(error)
    try:
        datetime.date.fromisoformat(data.template_date or "2000-01-01")
    except ValueError:
        yield f"--template-date {data.template_date} is no date: write YYYY-MM-DD"


def _objective(config: TrainConfig) -> Iterator[str]:
    denominator = config.objective.loss_denominator
    if config.data.weight_key is not None and denominator != "tokens":
        yield f"--weight-key goes with --loss-denominator tokens only, not with {denominator}"
    if config.objective.loss_kernels == "triton" and not _on_gpus(config):
        yield "--loss-kernels triton needs a CUDA device: leave it at auto here"


def _has_gpu() -> bool:
    # Here: torch takes seconds to import, and other mistakes are found without it.
    from megatron_probsft.runtime.device import has_gpu

    return has_gpu()


def _on_gpus(config: TrainConfig) -> bool:
    """Tell whether the run's processes have GPUs: here, or where a dry run with --world-size puts them."""
    return config.preview.world_size is not None or _has_gpu()


def _is_off(config: TrainConfig, setting: bool | None) -> bool:
    """Tell whether a setting that is on with CUDA unless it is given is off."""
    return setting is False or (setting is None and not _on_gpus(config))


def _lacks_transformer_engine(config: TrainConfig) -> bool:
    if config.preview.world_size is not None:  # what the GPUs' machines have is not known here
        return False
    # Here, as above.
    from megatron_probsft.models.build import use_transformer_engine

    return not use_transformer_engine()


def _precision(config: TrainConfig) -> Iterator[str]:
    precision, gpu = config.precision, config.preview.gpu
    if gpu and precision.bf16 is False:
        yield ESTIMATED_IN_BF16
    if precision.fp8_format is None:
        return
    if gpu and card_of(gpu).fp8 is None:
        yield f"--fp8-format: --gpu {gpu} has no FP8 units"
    if _lacks_transformer_engine(config):
        yield "--fp8-format needs a CUDA device and Transformer Engine, whose layers alone compute in FP8"
    if precision.bf16 is False:
        yield "--fp8-format needs --bf16: the values between the products are in bfloat16"
    if not config.batch.packing:
        yield "--fp8-format needs packs, whose length suits FP8's products: not with --no-packing"


def _kernels(config: TrainConfig) -> Iterator[str]:
    kernels = config.kernels
    if kernels.cuda_graph_impl != "none":
        yield (
            f"--cuda-graph-impl {kernels.cuda_graph_impl}: CUDA graphs replay fixed shapes, but the number "
            "of samples in a pack differs from one to the next"
        )
    if kernels.gradient_accumulation_fusion and not _on_gpus(config):
        yield "--gradient-accumulation-fusion needs a CUDA device"
    attention = kernels.attention_backend
    if attention == "fused" and _lacks_transformer_engine(config):
        yield "--attention-backend fused needs a CUDA device and Transformer Engine"
    for backend in ("flash", "fused", "unfused"):
        name, wanted = f"NVTE_{backend.upper()}_ATTN", str(int(attention in ("auto", backend)))
        if os.environ.get(name, wanted) != wanted:
            yield (
                f"--attention-backend {attention} contradicts {name}={os.environ[name]} in the environment: "
                "take that out, and choose by --attention-backend"
            )
    if kernels.tp_comm_overlap:
        if not config.layout.sequence_parallel:
            yield "--tp-comm-overlap needs --sequence-parallel, whose transfers it overlaps"
        if not config.batch.fixed_pack_length:
            yield "--tp-comm-overlap needs --fixed-pack-length: its buffers have one size"
        if _lacks_transformer_engine(config):
            yield "--tp-comm-overlap needs a CUDA device and Transformer Engine"


def _layout(config: TrainConfig) -> Iterator[str]:
    layout = config.layout
    if layout.overlap_param_gather and (
        _is_off(config, layout.use_distributed_optimizer) or _is_off(config, layout.overlap_grad_reduce)
    ):
        yield "--overlap-param-gather needs --use-distributed-optimizer and --overlap-grad-reduce"
    if layout.ddp_bucket_size is not None and _is_off(config, layout.overlap_grad_reduce):
        yield "--ddp-bucket-size needs --overlap-grad-reduce: without it all gradients are added up at once"
    if layout.recompute_modules and layout.recompute_granularity != "selective":
        yield "--recompute-modules needs --recompute-granularity selective"
    for name in layout.recompute_modules:
        if name not in _RECOMPUTED:
            known = ", ".join(_RECOMPUTED)
            yield f"--recompute-modules {name} is none of {known}; {meant(name, _RECOMPUTED)}"
        # Megatron-Core 0.19.2's CheckpointWithoutOutput asks Transformer Engine whether FP8 is on.
        if name in ("layernorm", "moe_act") and _lacks_transformer_engine(config):
            yield f"--recompute-modules {name} needs a CUDA device and Transformer Engine"
    given = {
        layout.recompute_granularity == "full",
        layout.recompute_method is not None,
        layout.recompute_num_layers is not None,
    }
    if len(given) > 1:  # all three, or none
        yield (
            "--recompute-granularity full needs --recompute-method and --recompute-num-layers, and only it "
            "does"
        )


def _batch(config: TrainConfig) -> Iterator[str]:
    batch, cp = config.batch, config.layout.context_parallel_size
    counted = batch.train_iters is not None or batch.train_epochs is not None
    if not counted and (config.data.data or config.preview.world_size is None):
        yield "give one of --train-iters and --train-epochs"
    if batch.fixed_pack_length and not batch.packing:
        yield "--fixed-pack-length is a way of packing: not with --no-packing"
    if cp > 1 and batch.seq_length % (2 * cp):
        yield f"--seq-length {batch.seq_length} must be a multiple of 2 × --context-parallel-size, {2 * cp}"


def _schedule(config: TrainConfig) -> Iterator[str]:
    schedule, lr = config.schedule, config.optimizer.lr
    if schedule.min_lr > lr:
        yield f"--min-lr {schedule.min_lr} is above --lr {lr}"
    if (schedule.lr_decay_style == "WSD") != (schedule.lr_wsd_decay_iters is not None):
        yield "--lr-wsd-decay-iters belongs to --lr-decay-style WSD, and WSD needs it"


def _checkpoint(config: TrainConfig) -> Iterator[str]:
    checkpoint = config.checkpoint
    if not checkpoint.save and not config.preview.dry_run:
        yield "--save is missing: the folder for this run's checkpoints and metrics"
    if checkpoint.save_hf_at_each_save and checkpoint.save_hf is None:
        yield "--save-hf-at-each-save needs --save-hf, the folder for them"
    retain, every = checkpoint.save_retain_interval, checkpoint.save_interval
    if retain is not None and (not every or retain % every):
        yield f"--save-retain-interval {retain} must be a multiple of --save-interval, {every}"


def _logging(config: TrainConfig) -> Iterator[str]:
    if config.logging.wandb_project is not None and importlib.util.find_spec("wandb") is None:
        yield "--wandb-project needs the package wandb: pip install wandb"


_RULES: dict[str, Callable[[TrainConfig], Iterator[str]]] = {
    "model": _model,
    "data": _data,
    "objective": _objective,
    "layout": _layout,
    "kernels": _kernels,
    "precision": _precision,
    "batch": _batch,
    "schedule": _schedule,
    "checkpoint": _checkpoint,
    "logging": _logging,
}
