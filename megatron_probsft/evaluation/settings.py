"""The settings of an evaluation, and the checks that need neither task nor model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.data.text.named_templates import check_template_name
from megatron_probsft.evaluation.model_folder import check_model_folder
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_writable


@dataclass
class Settings:
    """The flags of `evaluate`; None where the task, the model or vLLM decides."""

    model: Path
    task: str
    output: Path
    data: list[str]
    benchmarks: list[str] | None
    grader: str
    template: str | None
    template_date: str | None
    prompt_key: str
    answer_key: str
    limit: int | None
    start: int | None
    end: int | None
    samples: int | None
    temperature: float | None
    max_new_tokens: int | None
    seed: int
    server: str | None
    dtype: str
    tensor_parallel_size: int
    data_parallel_size: int | None
    max_model_len: int | None


def check_settings(settings: Settings) -> None:
    """Raise UserError for what is wrong whatever task and model are."""
    check_numbers(vars(settings))
    if settings.start is not None and settings.start < 0:
        raise UserError(f"--start must be at least 0, got {settings.start}")
    if settings.end is not None and settings.end <= (settings.start or 0):
        raise UserError(f"--end must be greater than --start {settings.start or 0}, got {settings.end}")
    own = (
        settings.dtype != "auto",
        settings.tensor_parallel_size > 1,
        settings.data_parallel_size is not None,
        settings.max_model_len is not None,
    )
    if settings.server and any(own):
        raise UserError(
            "--dtype, --tensor-parallel-size, --data-parallel-size and --max-model-len are the server's own: "
            "leave them out with --server"
        )
    if settings.template is not None:
        check_template_name(settings.template)
    if (settings.output / "summary.json").exists():
        raise UserError(f"--output {settings.output} holds a finished evaluation: name another folder")
    if (settings.output / "generations.jsonl").is_dir():
        raise UserError(f"--output {settings.output}: its generations.jsonl is a folder: name another folder")
    check_writable(settings.output, "--output")
    check_model_folder(settings.model)


def check_numbers(values: Mapping[str, Any], prefix: str = "") -> None:
    """Raise UserError for numbers out of range, of the settings that are there; flags begin with `prefix`."""
    sizes = ("tensor_parallel_size", "data_parallel_size")
    for name in ("limit", "samples", "max_new_tokens", *sizes, "max_model_len"):
        value = values.get(name)
        if value is not None and not 1 <= value < 2**31:
            limit = "at least 1" if value < 1 else "below 2^31"
            raise UserError(f"--{prefix}{name.replace('_', '-')} must be {limit}, got {value}")
    temperature = values.get("temperature")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UserError(f"--{prefix}temperature must be a number of at least 0, got {temperature}")
