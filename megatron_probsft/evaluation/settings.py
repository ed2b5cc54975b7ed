"""What an evaluation can be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.runtime.errors import UserError


@dataclass
class Settings:
    """The flags of tools/evaluate.py; None where the task, the model or vLLM decides."""

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
    max_model_len: int | None


def check_numbers(values: Mapping[str, Any], prefix: str = "") -> None:
    """Settings by their names, those that are there. Raises UserError; flags begin with `prefix`."""
    for name in ("limit", "samples", "max_new_tokens", "tensor_parallel_size", "max_model_len"):
        value = values.get(name)
        if value is not None and not 1 <= value < 2**31:
            limit = "at least 1" if value < 1 else "below 2^31"
            raise UserError(f"--{prefix}{name.replace('_', '-')} must be {limit}, got {value}")
    temperature = values.get("temperature")
    if temperature is not None and not 0 <= temperature < math.inf:
        raise UserError(f"--{prefix}temperature must be a number of at least 0, got {temperature}")
