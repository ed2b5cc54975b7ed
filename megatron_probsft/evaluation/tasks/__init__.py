"""Tasks by name: where the problems are, how they are sampled, and what counts as right."""

from __future__ import annotations

import difflib
from pathlib import Path

from megatron_probsft.evaluation.tasks.figfont import FIGFONT
from megatron_probsft.evaluation.tasks.file import file_task
from megatron_probsft.evaluation.tasks.math import MATH
from megatron_probsft.evaluation.tasks.medical import MEDICAL
from megatron_probsft.evaluation.tasks.task import Task
from megatron_probsft.runtime.errors import UserError

TASKS = {task.name: task for task in (MATH, MEDICAL, FIGFONT)}


def get_task(name: str, grader: str, prompt_key: str, answer_key: str) -> Task:
    """The task of that name, or of a jsonl file with a prompt and an answer in each row.

    Raises UserError: neither; an unknown grader.
    """
    if name in TASKS:
        return TASKS[name]
    if Path(name).is_file():
        return file_task(Path(name), grader, prompt_key, answer_key)
    if Path(name).suffix or "/" in name:
        raise UserError(f"--task {name} does not exist")
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"--task {name} is none of {', '.join(TASKS)}, and no such file{hint}")
