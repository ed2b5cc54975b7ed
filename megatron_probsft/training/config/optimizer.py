"""Settings of the update: the precision of the weights, the optimizer, the learning rate over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_probsft.training.config.flag import flag


@dataclass(frozen=True)
class PrecisionSettings:
    """The precision of weights and computation."""

    bf16: bool | None = flag(
        None,
        "Weights and computation are in bfloat16, with main weights in float32 in the optimizer. With "
        "--no-bf16 everything is in float32.",
        resume="fixed",
        by_device="on with CUDA",
    )
    fp8_format: Literal["e4m3", "hybrid"] | None = flag(
        None,
        "Matrix products of the layers are in FP8, of this format; hybrid has E5M2 for gradients. It needs "
        "Transformer Engine and packs. The output head stays in bfloat16.",
        resume="same",
    )
    fp8_recipe: Literal["delayed", "tensorwise", "mxfp8", "blockwise"] | None = flag(
        None,
        "FP8 values are scaled in this way. Without it, that is delayed.",
        belongs_to="fp8_format",
        resume="same",
    )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and the limit of the gradient."""

    lr: float = flag(5e-5, "The learning rate rises to this peak.", above=0, finite=True, resume="same")
    weight_decay: float = flag(
        0.01,
        "Each step shrinks the weights by this × the learning rate; not biases and norms, as in Megatron.",
        at_least=0,
        finite=True,
        resume="same",
    )
    adam_beta1: float = flag(
        0.9, "AdamW's mean of gradients forgets at this rate.", at_least=0, below=1, symbol="β", resume="same"
    )
    adam_beta2: float = flag(
        0.95,
        "AdamW's mean of squared gradients forgets at this rate.",
        at_least=0,
        below=1,
        symbol="β",
        resume="same",
    )
    adam_eps: float = flag(
        1e-8, "AdamW adds this to the root that it divides by.", above=0, finite=True, resume="same"
    )
    clip_grad: float = flag(
        1.0,
        "Gradients with a larger norm than this are scaled down to it. 0 means off.",
        at_least=0,
        resume="same",
    )


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time."""

    min_lr: float = flag(0.0, "The learning rate ends at this value.", at_least=0, resume="same")
    lr_decay_style: Literal["constant", "linear", "cosine", "WSD"] = flag(
        "cosine",
        "The learning rate falls in this way after the warmup. WSD stays at the peak and falls in the last "
        "--lr-wsd-decay-iters steps.",
        resume="same",
    )
    lr_wsd_decay_style: Literal["exponential", "linear", "cosine", "minus_sqrt"] = flag(
        "linear", "The learning rate falls in this way in the last part of WSD.", resume="same"
    )
    lr_wsd_decay_iters: int | None = flag(
        None, "The last part of WSD has this many steps.", above=0, resume="same"
    )
    lr_warmup_fraction: float | None = flag(
        None,
        "The learning rate rises from 0 during this share of all steps.",
        at_least=0,
        below=1,
        symbol="x",
        excludes="lr_warmup_iters",
        resume="same",
    )
    lr_warmup_iters: int = flag(
        0, "The learning rate rises from 0 during this many steps.", at_least=0, resume="same"
    )

    def warmup_steps(self, train_iters: int) -> int:
        """Return the steps of the warmup in a run of this length."""
        if self.lr_warmup_fraction is None:
            return self.lr_warmup_iters
        return int(self.lr_warmup_fraction * train_iters)
