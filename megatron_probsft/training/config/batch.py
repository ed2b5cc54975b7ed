"""Settings that say which samples a step has, how they are packed, and how long the run is."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_probsft.training.config.flag import flag


@dataclass(frozen=True)
class BatchSettings:
    """The samples of a step, how they are packed, and the length of the run."""

    seq_length: int = flag(
        2048, "A sample has at most this many tokens; see --truncation for longer ones.", above=0
    )
    global_batch_size: int = flag(256, "Each optimizer step has this many samples.", above=0, resume="same")
    micro_batch_size: int = flag(
        1,
        "A pack holds up to this many × --seq-length tokens. With --no-packing a micro-batch has this many "
        "samples.",
        above=0,
    )
    packing: bool = flag(
        True,
        "Several samples share one sequence without seeing each other. --no-packing pads the samples of a "
        "micro-batch to the longest of them instead.",
    )
    fixed_pack_length: bool = flag(
        False, "All packs are padded to --micro-batch-size × --seq-length, so that kernels see one shape."
    )
    train_iters: int | None = flag(
        None,
        "The run has this many optimizer steps. 0 means that the model is only read, validated and saved.",
        at_least=0,
        excludes="train_epochs",
        resume="same",
    )
    train_epochs: float | None = flag(
        None,
        "The run sees the data this many times, instead of --train-iters steps. With --data-weights it sees "
        "as many samples as that would be.",
        above=0,
        finite=True,
        resume="same",
    )
    seed: int = flag(
        1234,
        "The order of the samples and all random generators follow from this number.",
        at_least=0,
        below=2**63,
        resume="same",
    )
