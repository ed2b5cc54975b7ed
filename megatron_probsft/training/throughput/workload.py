"""Each data-parallel rank's share of a step: the run's own packs of samples of given lengths."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from megatron_probsft.data.order import sample_indices
from megatron_probsft.data.packing import fewest_packs
from megatron_probsft.training.batches import Batches
from megatron_probsft.training.config.batch import BatchSettings
from megatron_probsft.training.config.layout import LayoutSettings
from megatron_probsft.training.simulate.step_samples import StepSamples, store_of


@dataclass(frozen=True)
class Workload:
    """The micro-batches of one rank in one step; all ranks have as many, of the same length."""

    micro_batches: int
    pack_length: int
    real_tokens: int
    """Those of the whole step, over all ranks, that samples put through the model."""
    squares: float
    """Σ L² over the sequences of a micro-batch, its padding being one: the mean over micro-batches."""
    sequences: tuple[int, ...]
    """The lengths of the first micro-batch's sequences, its padding being one."""
    supervised_share: float
    """Supervised tokens ÷ real tokens."""
    data_parallel_size: int

    @property
    def real_share(self) -> float:
        """Real tokens ÷ computed tokens."""
        return self.real_tokens / (self.micro_batches * self.pack_length * self.data_parallel_size)


def chat_samples(batch: BatchSettings, mean: float = 900.0, spread: float = 0.8) -> StepSamples:
    """Return lengths spread as those of chat data often are: log-normal, cut at --seq-length.

    The lengths are quantiles at even distances, nothing is drawn. 40 % of the tokens are supervised.

    Args:
        spread: the standard deviation of the length's logarithm.
    """
    count = batch.global_batch_size
    normal = NormalDist(math.log(mean) - spread**2 / 2, spread)
    quantiles = (normal.inv_cdf((number + 0.5) / count) for number in range(count))
    lengths = [min(max(round(math.exp(one)), 16), batch.seq_length) for one in quantiles]
    return StepSamples(tuple(lengths), tuple(round(0.4 * length) for length in lengths))


def described(samples: StepSamples) -> str:
    """Return a phrase that says how many samples a step has, and how long they are."""
    real = sum(samples.lengths) - len(samples.lengths)
    return (
        f"{len(samples.lengths):,} samples of {sum(samples.lengths) / len(samples.lengths):,.0f} tokens on "
        f"average, at most {max(samples.lengths):,}, {sum(samples.supervised) / real:.0%} of them supervised"
    )


def plan_workload(
    samples: StepSamples, batch: BatchSettings, layout: LayoutSettings, dp_size: int
) -> Workload:
    """Return what packing makes of a step's samples; of the rank that is dealt the costliest pack."""
    count = len(samples.lengths)
    step = dataclasses.replace(batch, train_iters=1, train_epochs=None, global_batch_size=count)
    store = store_of(samples)
    plan = Batches(store, step, layout, (0, dp_size)).training_plan(0)
    real = store.lengths[sample_indices(0, count, count, batch.seed)] - 1
    packs: list[np.ndarray] = []
    for pack, length, multiple in zip(plan.packs, plan.lengths, plan.sample_multiples, strict=True):
        padded = -(-real[np.asarray(pack, int)] // multiple) * multiple
        packs.append(np.append(padded, length - padded.sum()).astype(float))
    return Workload(
        micro_batches=len(plan.packs),
        pack_length=max(plan.lengths),
        real_tokens=int(real.sum()),
        squares=sum(float(np.square(pack).sum()) for pack in packs) / len(packs),
        sequences=tuple(int(length) for length in packs[0] if length),
        supervised_share=sum(samples.supervised) / int(real.sum()),
        data_parallel_size=dp_size,
    )


def rough_workload(
    samples: StepSamples, batch: BatchSettings, layout: LayoutSettings, dp_size: int
) -> Workload:
    """Return about what `plan_workload` does, without packing: a search asks for it hundreds of times.

    There are as few packs as Martello and Toth's bound permits, all as long as their mean or as the longest
    sample.
    """
    real = np.sort(np.asarray(samples.lengths)) - 1
    interleaved = layout.num_virtual_stages_per_pipeline_rank is not None
    unit = dp_size * (layout.pipeline_model_parallel_size if interleaved else 1)
    packs = -(-fewest_packs(real, batch.seq_length * batch.micro_batch_size) // unit) * unit
    tokens = int(real.sum())
    length = max(int(real[-1]), -(-tokens // packs))
    squares = float(np.square(real.astype(float)).sum()) / packs
    each = max(round(len(real) / packs), 1)
    return Workload(
        micro_batches=packs // dp_size,
        pack_length=length,
        real_tokens=tokens,
        squares=max(squares, float(real[-1]) ** 2 if each == 1 else 0.0),
        sequences=tuple(int(one) for one in real[:: max(len(real) // each, 1)][:each]),
        supervised_share=sum(samples.supervised) / tokens,
        data_parallel_size=dp_size,
    )
