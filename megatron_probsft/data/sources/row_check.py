"""Training data are looked at before anything is imported that takes seconds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from megatron_probsft.data.sources.rows import read_rows


def check_rows(
    files: Sequence[str],
    seconds: float,
    *,
    prompt_key: str,
    response_key: str,
    messages_key: str,
    weight_key: str | None,
) -> None:
    """Check the rows of those `files` that are local files, for so many seconds.

    Rows not reached by then are checked when they are tokenized, as are folders and data sets of the hub.

    Raises:
        UserError: as `read_rows` does.
    """
    local = [file for file in files if Path(file).is_file()]
    if not local:
        return
    rows = read_rows(
        local, prompt_key=prompt_key, response_key=response_key, messages_key=messages_key,
        weight_key=weight_key,
    )  # fmt: skip
    end = time.monotonic() + seconds
    for _ in rows:
        if time.monotonic() > end:
            return
