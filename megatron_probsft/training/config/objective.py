"""Settings that say what is minimised, and how it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_probsft.training.config.flag import flag

Denominator = Literal["tokens", "kept-tokens", "microbatch-mean", "microbatch-sum"]


@dataclass(frozen=True)
class ObjectiveSettings:
    """The function that is minimised, and the way it is computed."""

    objective: str = flag(
        "original",
        "Training minimises this function of the label probability p: original, logp, p, GeneralFamily-α, "
        "OnlyTopP-q, OnlyBottomP-q, and so on, or a function of your own, as package.module:function.",
        resume="same",
    )
    loss_denominator: Denominator = flag(
        "tokens",
        "The sum of the losses is divided by this. tokens is the number of supervised tokens in the whole "
        "step. The others reproduce other trainers: kept-tokens is the number of those that the objective "
        "keeps, microbatch-mean and microbatch-sum take the mean of each micro-batch first.",
        resume="same",
    )
    loss_path: Literal["auto", "materialized", "fused"] = flag(
        "auto",
        "The logits of a micro-batch's supervised tokens are computed in this way. fused computes those of "
        "--loss-chunk-tokens at a time, with their gradients in the forward pass; materialized computes all "
        "at once; auto is fused.",
    )
    loss_chunk_tokens: int | None = flag(
        None,
        "The fused head holds the logits of this many tokens at a time.",
        above=0,
        by_device="8192 × --tensor-model-parallel-size with CUDA, 4096 without",
    )
    loss_kernels: Literal["auto", "torch", "triton"] = flag(
        "auto", "These kernels compute the loss. auto takes triton on CUDA and torch elsewhere."
    )
