"""How probable are the training data to the model before training? That tells which objective fits.

arXiv 2510.00526, section 4: where the base model already gives its labels a high probability, objectives that
lean on it win by a wide margin; where it knows nothing, log-likelihood does; in between they tie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.objectives.registry import get_objective, with_statistic
from megatron_probsft.runtime.device import current_device
from megatron_probsft.runtime.distributed import data_group
from megatron_probsft.training.batches import Batches, StepBatch
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.state import data_parallel
from megatron_probsft.training.step import Criterion, validate
from megatron_probsft.vocab_parallel.head_parts import HeadOptions, Tokens
from megatron_probsft.vocab_parallel.token_means import TokenMeans, combine

_MEDIAN_BINS = 10_000

PAPER = (
    # domain, mean p before training, "−log p against −p" after it
    ("math", (0.76, 0.81), "Qwen2.5-Math-7B 22.67 against 36.51, Llama-3.1-8B 6.49 against 10.56"),
    ("medical", (0.50, 0.59), "Llama-3.1-8B 47.23 against 45.89"),
    ("figfont", (0.01, 0.07), "Qwen2.5-7B 35.20 against 0.00 exact match"),
)
"""arXiv 2510.00526: mean p over its models, and accuracies of −log p and −p, tables 2 to 4."""

_STRONG = (0.59 + 0.76) / 2
_WEAK = (0.07 + 0.50) / 2
"""Half way between the paper's domains: where one ends and the next begins is not known."""


@dataclass(frozen=True)
class Advice:
    place: str
    """On the continuum: model-strong, model-intermediate, model-weak (the paper's terms)."""
    objectives: tuple[str, ...]
    """To try, the likeliest first."""
    reason: str


@dataclass(frozen=True)
class Reading:
    """The label tokens of one source, or of all."""

    source: str
    samples: int
    median_p: float
    """To 1 / 10,000."""
    means: TokenMeans

    def record(self) -> dict[str, Any]:
        """For JSON."""
        means = asdict(self.means)
        del means["loss"]
        return {
            "source": self.source,
            "samples": self.samples,
            "supervised_tokens": means.pop("tokens"),
            "mean_p": means.pop("mean_p"),
            "median_p": self.median_p,
            "share_below_0.1": self.means.share_below(0.1),
            "share_above_0.55": self.means.share_above(0.55),
            "p_histogram": means.pop("histogram"),
            **means,
            **asdict(advise(self.means.mean_p)),
        }


def advise(mean_p: float) -> Advice:
    """Where a mean p lies on the paper's continuum, and what to train with there."""
    if mean_p >= _STRONG:
        return Advice(
            "model-strong",
            ("p", "GeneralFamily-10", "OnlyTopP-0.2", "original"),
            "the model knows these data: leaning on its own probabilities should win by a wide margin",
        )
    if mean_p >= _WEAK:
        return Advice(
            "model-intermediate",
            ("original", "p", "GeneralFamily-0.5"),
            "no objective is ahead by much: compare on held-out scores",
        )
    return Advice(
        "model-weak",
        ("original", "GeneralFamily--0.5"),
        "the model does not know these data: improbable tokens must count, log-likelihood should win",
    )


def probe(
    model: Sequence[torch.nn.Module],
    store: TokenStore,
    vocab_size: int,
    config: TrainConfig,
    most: int,
    progress: Callable[[str, Iterator[StepBatch], int], Iterable[StepBatch]],
) -> list[Reading]:
    """One forward pass over samples of each source: its reading, and last that of all together.

    Args:
        model: this rank's chunks.
        most: samples of a source, at even distances.
        progress: wraps (title, steps, their number) with a bar.

    Collectives: those of forward, and two all-reduces of 10,000 integers per source.
    """
    criterion = Criterion(
        with_statistic(get_objective("original"), "entropy"),
        vocab_size,
        HeadOptions(config.loss_path, config.loss_chunk_tokens, config.loss_kernels),
    )
    batches = Batches(store, dataclasses.replace(config, data_weights=None), data_parallel())
    readings, all_bins = [], torch.zeros(_MEDIAN_BINS, dtype=torch.int64)
    for number, source in enumerate(store.sources):
        total = batches.steps_in_order(number, most)
        if total == 0:  # all left out by --truncation
            continue
        bins = torch.zeros(_MEDIAN_BINS, dtype=torch.int64, device=current_device())

        def count(tokens: Tokens, bins: torch.Tensor = bins) -> None:
            index = (tokens.log_p.exp() * _MEDIAN_BINS).long().clamp(max=_MEDIAN_BINS - 1)
            bins += torch.bincount(index, minlength=_MEDIAN_BINS)

        steps = progress(f"probing {source}", batches.in_order(number, most), total)
        means = validate(model, iter(steps), criterion, count)
        dist.all_reduce(bins, group=data_group())
        dist.all_reduce(bins, group=parallel_state.get_model_parallel_group())  # tells the other stages
        samples = min(most, int((store.source == number).sum()))
        readings.append(Reading(source, samples, _median(bins), means))
        all_bins += bins.cpu()
    if len(readings) > 1:
        whole = combine([reading.means for reading in readings])
        readings.append(
            Reading("all", sum(reading.samples for reading in readings), _median(all_bins), whole)
        )
    return readings


def _median(bins: torch.Tensor) -> float:
    """The middle of the bin in which half of the counts are reached."""
    reached = bins.cumsum(0) >= bins.sum() / 2
    return (int(reached.int().argmax()) + 0.5) / len(bins)
