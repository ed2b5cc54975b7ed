"""The trainer's flags: names, types, defaults, help. Megatron's own names wherever Megatron has the thing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.models.layout import Parallelism

Denominator = Literal["tokens", "kept-tokens", "microbatch-mean", "microbatch-sum"]

CHANGEABLE = (
    "seed", "data_weights", "global_batch_size", "objective", "loss_denominator", "train_iters",
    "train_epochs", "lr", "min_lr", "lr_decay_style", "lr_wsd_decay_style", "lr_wsd_decay_iters",
    "lr_warmup_fraction", "lr_warmup_iters", "weight_decay", "adam_beta1", "adam_beta2", "adam_eps",
    "clip_grad",
)  # fmt: skip
"""What a resumed run must share with the one before it, unless --allow-changed names it."""


def flag(default: Any, text: str) -> Any:
    """A dataclass field that becomes a command line flag and a YAML key."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class TrainConfig:
    """Every setting of a run. Flags are these names with dashes; YAML keys are either spelling."""

    # What is trained, and where it goes.
    hf_model: str | None = flag(None, "Hugging Face folder or hub id to start from")
    load: str | None = flag(
        None,
        "run folder whose newest checkpoint is resumed, exactly; the same as --save and with --hf-model: "
        "start there while it holds none, so that one command line starts and restarts a job",
    )
    ckpt_step: int | None = flag(None, "with --load: this step's checkpoint instead of the newest")
    allow_changed: list[str] = flag(
        [], "settings that may differ from the resumed run's: data, lr, objective, …"
    )
    finetune: bool = flag(False, "with --load: take the weights only and start at step 0")
    save: str = flag("", "run folder for configuration, metrics, checkpoints; new, or the same as --load")
    save_hf: str | None = flag(None, "write the trained model as a Hugging Face folder here")
    save_hf_at_each_save: bool = flag(
        False, "with every checkpoint, and --save-hf is the folder of folders: iter_0000100/, …"
    )

    # Data.
    data: list[str] = flag(
        [],
        "training data: .jsonl or .parquet files, folders of Dataset.save_to_disk (folder:split), data sets "
        "of the hub (owner/name:config:split)",
    )
    data_weights: list[float] | None = flag(
        None, "share of the training samples drawn from each of --data (default: every sample once per epoch)"
    )
    valid_data: list[str] = flag([], "validation data, likewise")
    template: str = flag(
        "chat", f"chat: the tokenizer's template; plain: none; or {', '.join(NAMED_TEMPLATES)}"
    )
    template_date: str | None = flag(
        None,
        "YYYY-MM-DD that a chat template which prints today's date prints (default: the day on which the run "
        "started, kept when it is resumed and for its evaluation)",
    )
    show_samples: int = flag(
        0, "print so many of the first samples as text, what is trained in ⟦ ⟧ (a dry run: 2)"
    )
    prompt_key: str = flag("prompt", "column of the prompt; dots reach inside: extra_info.question")
    response_key: str = flag("response", "column of the response")
    messages_key: str = flag("messages", "column of chat messages, used where there is no prompt column")
    weight_key: str | None = flag(None, "column of a number that weighs the row's tokens in the loss")
    truncation: Literal["error", "drop", "left", "right"] = flag("error", "for samples over --seq-length")
    data_cache_path: str | None = flag(None, "folder for tokenized data (default: data_cache beside --save)")
    num_workers: int | None = flag(None, "tokenizer processes (default: up to 8, by rows and cores)")

    # Objective.
    objective: str = flag("original", "original, logp, p, GeneralFamily-α, OnlyTopP-q, OnlyBottomP-q, …")

    loss_denominator: Denominator = flag(
        "tokens", "global token mean; the others reproduce other trainers, see training/denominators.py"
    )
    loss_path: Literal["auto", "materialized", "fused"] = flag(
        "auto",
        "logits of a micro-batch's supervised tokens. fused: --loss-chunk-tokens at a time, with gradients "
        "made in the forward pass; materialized: all at once; auto: fused",
    )
    loss_chunk_tokens: int = flag(4096, "tokens whose logits the fused head holds at a time")
    loss_kernels: Literal["auto", "torch", "triton"] = flag("auto", "auto: triton on CUDA, torch elsewhere")

    # Parallel layout.
    tensor_model_parallel_size: int = flag(1, "processes that share each layer")
    pipeline_model_parallel_size: int = flag(1, "groups of layers on different processes")
    num_virtual_stages_per_pipeline_rank: int | None = flag(
        None, "groups of layers on each pipeline process, run in turn (interleaved schedule)"
    )
    context_parallel_size: int = flag(1, "processes that share each sequence")
    expert_model_parallel_size: int = flag(1, "data-parallel processes that share a mixture's experts")
    decoder_first_pipeline_num_layers: int | None = flag(None, "layers of the first stage, if special")
    decoder_last_pipeline_num_layers: int | None = flag(None, "layers of the last stage, if special")
    sequence_parallel: bool = flag(False, "cut norms and residuals along the sequence over the TP group")
    use_distributed_optimizer: bool = flag(False, "shard optimizer states over data-parallel ranks")

    overlap_grad_reduce: bool = flag(False, "reduce gradients while the backward pass goes on")
    overlap_param_gather: bool = flag(False, "gather weights while the forward pass goes on")
    recompute_granularity: Literal["full", "selective"] | None = flag(
        None, "activations made anew in backward: full: of whole layers; selective: of attention"
    )
    recompute_method: Literal["uniform", "block"] | None = flag(
        None, "full: groups of --recompute-num-layers; or that many layers of each stage"
    )
    recompute_num_layers: int | None = flag(None, "see --recompute-method")

    # Batch and length.
    seq_length: int = flag(2048, "longest sample, in tokens")
    global_batch_size: int = flag(256, "samples per optimizer step")
    micro_batch_size: int = flag(1, "a pack holds up to this many × seq_length tokens")
    packing: bool = flag(True, "--no-packing pads micro-batch-size samples to the longest of them instead")
    fixed_pack_length: bool = flag(False, "pad packs to micro-batch-size × seq-length, for one kernel shape")
    train_iters: int | None = flag(None, "optimizer steps; 0: only read, validate and save")
    train_epochs: float | None = flag(
        None, "passes over the data, instead of --train-iters; with --data-weights: times as many samples"
    )

    # Precision.
    bf16: bool = flag(False, "bfloat16 weights with float32 main weights; float32 throughout without it")

    # Optimizer and schedule.
    lr: float = flag(5e-5, "peak learning rate")
    min_lr: float = flag(0.0, "learning rate at the end of the decay")
    lr_decay_style: Literal["constant", "linear", "cosine", "WSD"] = flag("cosine", "shape of the schedule")
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = flag(
        "linear", "shape of WSD's last part"
    )
    lr_wsd_decay_iters: int | None = flag(None, "length of WSD's last part, in steps")
    lr_warmup_fraction: float | None = flag(None, "warmup as a share of all steps")
    lr_warmup_iters: int = flag(0, "warmup in steps")
    weight_decay: float = flag(0.01, "AdamW's; not on biases and norms, as in Megatron")
    adam_beta1: float = flag(0.9, "AdamW")
    adam_beta2: float = flag(0.95, "AdamW")
    adam_eps: float = flag(1e-8, "AdamW")
    clip_grad: float = flag(1.0, "gradient norm limit; 0: off")

    dry_run: bool = flag(False, "check everything, print sizes and statistics, and build nothing large")
    verbose: bool = flag(False, "with --dry-run: print all settings, not only those that are not the default")

    # Rhythm.
    eval_interval: int | None = flag(None, "validate every so many steps (always at the start and the end)")
    save_interval: int | None = flag(None, "checkpoint every so many steps (always after the last)")
    save_retain_interval: int | None = flag(None, "keep checkpoints whose step this divides, and the newest")
    most_recent_k: int | None = flag(None, "keep so many of the newest checkpoints (default: all)")
    async_save: bool = flag(False, "write checkpoints in the background, from a copy in host memory")
    save_optim: bool = flag(True, "checkpoints can be resumed; without it they hold the weights only")
    exit_interval: int | None = flag(None, "save and stop after a step that this divides")
    exit_duration_in_mins: float | None = flag(None, "save and stop after the step in which this time is up")
    max_skipped_steps: int = flag(5, "stop after so many steps in a row whose loss or gradient is not finite")
    spike_factor: float = flag(
        8.0, "flag a loss or gradient norm so many σ above the median of the last 50 steps"
    )
    check_weight_hash_across_dp_replicas_interval: int | None = flag(
        None, "every so many steps: stop unless all data-parallel replicas hold the same weights"
    )
    probe_samples: int | None = flag(
        None, "before step 1: how probable so many samples of each of --data are, and what objective fits"
    )
    log_interval: int = flag(1, "console line every so many steps")
    log_entropy: bool = flag(False, "report the mean entropy of the model's distribution, in nats")
    wandb_project: str | None = flag(None, "report to this Weights & Biases project too; WANDB_MODE as usual")
    wandb_exp_name: str | None = flag(None, "the run's name there (default: the name of the run folder)")
    wandb_entity: str | None = flag(None, "the user or team that the project belongs to")
    wandb_save_dir: str | None = flag(None, "where W&B keeps its files (default: the run folder)")
    seed: int = flag(1234, "of data order and random generators")

    def layout(self) -> Parallelism:
        """How the model is spread over processes."""
        names = (one.name for one in dataclasses.fields(Parallelism))
        return Parallelism(**{name: getattr(self, name) for name in names})

    def may_change(self, name: str) -> bool:
        """Whether --allow-changed names this setting (or "data"), in either spelling."""
        return name in (changed.replace("-", "_") for changed in self.allow_changed)
