"""The probe of a run's data: `probing` reads it, here the model measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from megatron_probsft.objectives.registry import get_objective, with_statistic
from megatron_probsft.probing.probe import Observe, Reading, probe
from megatron_probsft.training.batches import Batches, StepBatch
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.start.inputs import Inputs
from megatron_probsft.training.start.open_run import head_options
from megatron_probsft.training.state import data_parallel
from megatron_probsft.training.step import Criterion, validate
from megatron_probsft.vocab_parallel.token_means import TokenMeans


def probe_data(
    config: TrainConfig,
    model: Sequence[torch.nn.Module],
    inputs: Inputs,
    most: int,
    progress: Callable[[str, Iterator[StepBatch], int], Iterable[StepBatch]],
) -> list[Reading]:
    """Return how probable up to `most` samples of each source are to the model; collective.

    Args:
        model: this rank's chunks.
        progress: wraps (title, steps, their number) with a bar.
    """
    criterion = Criterion(
        with_statistic(get_objective("original"), "entropy"), inputs.hf.shape.vocab_size, head_options(config)
    )
    batches = Batches(inputs.train, config.batch, config.layout, data_parallel())

    def measure(source: int, observe: Observe) -> TokenMeans:
        steps = batches.in_order(source, most)
        title = f"probing {inputs.train.sources[source]}"
        shown = progress(title, steps, batches.steps_in_order(source, most))
        return validate(model, iter(shown), criterion, observe)

    return probe(inputs.train, most, measure)
