"""What an evaluation can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
