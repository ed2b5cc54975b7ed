"""`TrainConfig`: every setting of a run, in groups; and the flat view of flags and YAML files."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from megatron_probsft.training.config.batch import BatchSettings
from megatron_probsft.training.config.checkpoint import CheckpointSettings
from megatron_probsft.training.config.data import DataSettings
from megatron_probsft.training.config.flag import Flag
from megatron_probsft.training.config.layout import KernelSettings, LayoutSettings
from megatron_probsft.training.config.log import GuardSettings, LoggingSettings
from megatron_probsft.training.config.model import ModelSettings, PreviewSettings
from megatron_probsft.training.config.objective import ObjectiveSettings
from megatron_probsft.training.config.optimizer import OptimizerSettings, PrecisionSettings, ScheduleSettings


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a run, in groups: `config.optimizer.lr`.

    Flags and YAML keys are flat: --lr, `lr: 5e-5`. `TrainConfig.of(lr=5e-5)` takes them in this form, and
    `flat()` returns them. Nothing is checked here: `training/start/checks.py` does that.
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    layout: LayoutSettings = field(default_factory=LayoutSettings)
    kernels: KernelSettings = field(default_factory=KernelSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    precision: PrecisionSettings = field(default_factory=PrecisionSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    guards: GuardSettings = field(default_factory=GuardSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    preview: PreviewSettings = field(default_factory=PreviewSettings)

    @classmethod
    def of(cls, **values: Any) -> TrainConfig:
        """Return the settings with these values, by flat names; the others have their defaults."""
        return cls().replace(**values)

    def replace(self, **values: Any) -> TrainConfig:
        """Return a copy with these values, by flat names.

        Raises:
            TypeError: there is no setting of such a name.
        """
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in settings():
                raise TypeError(f"TrainConfig has no setting {name!r}")
            groups.setdefault(settings()[name].group, {})[name] = value
        return dataclasses.replace(
            self, **{name: dataclasses.replace(getattr(self, name), **part) for name, part in groups.items()}
        )

    def flat(self) -> dict[str, Any]:
        """Return the value of every setting by its flat name: the keys of train_config.yaml."""
        return {name: value for group in dataclasses.asdict(self).values() for name, value in group.items()}

    def value(self, name: str) -> Any:
        """Return the value of the setting of this flat name."""
        return getattr(getattr(self, settings()[name].group), name)


@dataclass(frozen=True)
class Setting:
    """One setting, as flags, YAML and the page of flags need it."""

    name: str
    group: str
    """The field of `TrainConfig` that it lies in."""
    kind: type
    """The type of its value, or of each of its values."""
    is_list: bool
    choices: list[str] | None
    default: Any
    flag: Flag


@functools.cache
def settings() -> dict[str, Setting]:
    """Return every setting by its flat name, group by group."""
    found: dict[str, Setting] = {}
    for name, kind in group_types().items():
        annotations = typing.get_type_hints(kind)
        usual = kind()
        for one in dataclasses.fields(kind):
            if one.name in found:
                raise TypeError(f"the setting {one.name} lies in two groups")
            scalar = _scalar(annotations[one.name])
            found[one.name] = Setting(one.name, name, *scalar, getattr(usual, one.name), one.metadata["flag"])
    return found


def group_types() -> dict[str, type]:
    """Return the class of each group of settings, by the name of its field."""
    annotations = typing.get_type_hints(TrainConfig)
    return {one.name: annotations[one.name] for one in dataclasses.fields(TrainConfig)}


def _scalar(annotation: Any) -> tuple[type, bool, list[str] | None]:
    """Return the type of a value, whether there is a list of them, and which are allowed."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # X | None
        annotation = next(arg for arg in typing.get_args(annotation) if arg is not type(None))
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0], True, None
    if typing.get_origin(annotation) is typing.Literal:
        return str, False, list(typing.get_args(annotation))
    return annotation, False, None
