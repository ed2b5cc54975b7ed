"""The tasks that `--task` names: a domain, or a file of the user's own."""

from __future__ import annotations

from pathlib import Path

from megatron_probsft.domains.registry import domains
from megatron_probsft.domains.task import Task
from megatron_probsft.evaluation.file_task import file_task
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.suggestions import nearest


def get_task(name: str, grader: str, prompt_key: str, answer_key: str) -> Task:
    """The domain of that name, or the task of a jsonl file with a prompt and an answer in each row.

    Raises UserError: neither; an unknown grader.
    """
    known = domains()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return file_task(Path(name), grader, prompt_key, answer_key)
    if Path(name).suffix or "/" in name:
        raise UserError(f"--task {name} does not exist")
    near = nearest(name, known)
    hint = f"; did you mean {near}?" if near else ""
    raise UserError(f"--task {name} is none of {', '.join(known)}, and no such file{hint}")
