"""The keys of a training run's metrics.jsonl and summary.json, and of probe.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_probsft.runtime.run_files.schema import FileContent, Number, key, may_be_missing


@dataclass(frozen=True, kw_only=True)
class Record(FileContent):
    """A line of a run's metrics.jsonl; its kind says which class has the other keys."""

    kind: str
    iteration: int


@dataclass(frozen=True, kw_only=True)
class _RecordOfMeans(Record):
    """The means over supervised tokens that training and validation records begin with."""

    loss: Number
    nll: Number
    mean_p: Number
    entropy: Number = may_be_missing()


@dataclass(frozen=True, kw_only=True)
class TrainRecord(_RecordOfMeans):
    """One optimizer step (kind `train`)."""

    grad_norm: Number
    learning_rate: Number
    p_below_0_1: Number = key("p_below_0.1")
    p_above_0_55: Number = key("p_above_0.55")
    p_histogram: list[float]
    """Shares of the supervised tokens in equal bins of p."""
    samples: int
    tokens: int
    supervised_tokens: int
    micro_batches: int
    pack_length: int
    packing_efficiency: Number
    tokens_per_second: Number
    supervised_tokens_per_second: Number
    model_tflops_per_device: Number
    mfu: Number = may_be_missing()
    """It is there where the device's peak is known."""
    peak_memory_gib: Number
    skipped_steps: int
    """The number of skipped steps so far."""
    spike: list[str]
    """The names of the values that were spikes."""
    seconds: dict[str, float]
    """The step's wall time by part."""
    seconds_since_start: Number
    eta_seconds: Number


@dataclass(frozen=True, kw_only=True)
class ValidationRecord(_RecordOfMeans):
    """One pass over the validation data (kind `validation`)."""

    p_below_0_1: Number = key("p_below_0.1")
    p_above_0_55: Number = key("p_above_0.55")
    p_histogram: list[float]
    supervised_tokens: int
    seconds: Number
    sources: dict[str, Any] = may_be_missing()
    """The same means by source, where there are several."""


RECORDS: dict[str, type[_RecordOfMeans]] = {"train": TrainRecord, "validation": ValidationRecord}
"""The class of each kind of record."""


@dataclass(frozen=True, kw_only=True)
class TrainingSummary(FileContent):
    """summary.json in a run folder: the whole run in short, those parts included that ran before a resume."""

    status: str
    """`finished`, or why the run ended before."""
    steps: int
    samples: int
    tokens: int
    supervised_tokens: int
    wall_seconds: float
    seconds: dict[str, float]
    """Wall time by part."""
    tokens_per_second: float
    supervised_tokens_per_second: float
    packing_efficiency: float = may_be_missing()
    model_tflops_per_device: float = may_be_missing()
    mfu: float = may_be_missing()
    train: dict[str, Any] = may_be_missing()
    """The means of the first and the last step."""
    validation: dict[str, Any] = may_be_missing()
    """The means of the first, the last and the best validation."""
    skipped_steps: int
    spikes: int
    peak_memory_gib: float
    checkpoint: str | None
    """The newest checkpoint's folder."""


@dataclass(frozen=True, kw_only=True)
class ProbeReading(FileContent):
    """The label tokens of one source, or of all, in probe.json."""

    source: str
    samples: int
    supervised_tokens: int
    mean_p: float
    median_p: float
    share_below_0_1: float = key("share_below_0.1")
    share_above_0_55: float = key("share_above_0.55")
    p_histogram: list[float]
    nll: float
    entropy: Number
    place: str
    """The place on the paper's continuum."""
    objectives: list[str]
    reason: str


@dataclass(frozen=True, kw_only=True)
class ProbeReport(FileContent):
    """probe.json."""

    readings: list[dict[str, Any]]
    """A `ProbeReading` for each source; where there are several, one for all of them comes last."""
