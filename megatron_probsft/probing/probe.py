"""A reading of how probable the training data are to the model before training, and which objective fits.

arXiv 2510.00526, section 4: where the base model already gives its labels a high probability, objectives that
lean on it win by a wide margin; where it knows nothing, log-likelihood does; in between they tie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.runtime.device import current_device
from megatron_probsft.runtime.distributed import data_group
from megatron_probsft.runtime.run_files.training import ProbeReading
from megatron_probsft.vocab_parallel.head_parts import Tokens
from megatron_probsft.vocab_parallel.token_means import TokenMeans, combine

Observe = Callable[[Tokens], None]
"""It is given the tokens of each micro-batch, on every rank of the last pipeline stage."""
Measure = Callable[[int, Observe], TokenMeans]
"""It runs the model over samples of the source of this number, and returns the means over their tokens."""

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
    """The objectives that fit a mean p, and why."""

    place: str
    """The place on the continuum: model-strong, model-intermediate, model-weak (the paper's terms)."""
    objectives: tuple[str, ...]
    """The ones to try, the likeliest first."""
    reason: str


@dataclass(frozen=True)
class Reading:
    """The probabilities of the label tokens of one source, or of all."""

    source: str
    samples: int
    median_p: float
    """It is exact to 1 / 10,000."""
    means: TokenMeans

    def record(self) -> dict[str, Any]:
        """For JSON."""
        means = asdict(self.means)
        del means["loss"]
        content = {
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
        return ProbeReading.from_keys(content).to_part()


def advise(mean_p: float) -> Advice:
    """Return where a mean p lies on the paper's continuum, and what to train with there."""
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


def probe(store: TokenStore, most: int, measure: Measure) -> list[Reading]:
    """Return a reading of each source that has samples, and last one of all together if there are several.

    Args:
        most: up to so many samples of a source are measured.
        measure: a forward pass over them.

    Collectives: those of `measure`, and two all-reduces of 10,000 integers per source.
    """
    readings, all_bins = [], torch.zeros(_MEDIAN_BINS, dtype=torch.int64)
    for number, source in enumerate(store.sources):
        samples = min(most, int((store.source == number).sum()))
        if samples == 0:  # all left out by --truncation
            continue
        bins = torch.zeros(_MEDIAN_BINS, dtype=torch.int64, device=current_device())

        def count(tokens: Tokens, bins: torch.Tensor = bins) -> None:
            index = (tokens.log_p.exp() * _MEDIAN_BINS).long().clamp(max=_MEDIAN_BINS - 1)
            bins += torch.bincount(index, minlength=_MEDIAN_BINS)

        means = measure(number, count)
        dist.all_reduce(bins, group=data_group())
        dist.all_reduce(bins, group=parallel_state.get_model_parallel_group())  # tells the other stages
        readings.append(Reading(source, samples, _median(bins), means))
        all_bins += bins.cpu()
    if len(readings) > 1:
        whole = combine([reading.means for reading in readings])
        readings.append(
            Reading("all", sum(reading.samples for reading in readings), _median(all_bins), whole)
        )
    return readings


def _median(bins: torch.Tensor) -> float:
    """Return the middle of the bin in which half of the counts are reached."""
    reached = bins.cumsum(0) >= bins.sum() / 2
    return (int(reached.int().argmax()) + 0.5) / len(bins)
