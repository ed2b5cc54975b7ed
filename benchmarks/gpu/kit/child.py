"""Runs rows of one part: `python -m benchmarks.gpu.kit.child MODULE OPTIONS`; `children` starts it.

Says on standard output, a JSON object a line: which rows there are; which one starts; what came of it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.place import NotHereError, Place, WrongError
from benchmarks.gpu.machine import nvidia_smi

Row = Callable[[], Mapping[str, Any]]
"""Does the work of a row; `result` in what it returns is shown."""


def main() -> None:
    module, options = sys.argv[1], json.loads(sys.argv[2])
    # Standard output is for the messages: what libraries print goes to the log, with the errors.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        print(json.dumps(message), file=messages, flush=True)

    place = Place(options["small"], Path(options["output"]))
    rows: dict[str, Row] = importlib.import_module(module).rows(place)
    names = [name for name in rows if options["text"] in name]
    say(rows=names)
    if options["rows"] is not None:
        names = options["rows"]
    for name in names[: 1 if options["apart"] else None]:
        say(started=name)
        outcome = _outcome(rows[name])
        say(row=name, **outcome, **({} if place.small else {"card_after": nvidia_smi()}))
        if not _device_answers():
            return


def _outcome(row: Row) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        record = {"status": "ok", **row()}
    except NotHereError as reason:
        record = {"status": "not here", "result": str(reason)}
    except WrongError as reason:
        record = {"status": "wrong", "result": str(reason)}
    except BaseException as error:
        traceback.print_exc()
        text = " ".join(str(error).split())
        record = {"status": "failed", "result": f"{type(error).__name__}: {text[:300]}"}
    return record | {"seconds_taken": round(time.perf_counter() - started, 2)}


def _device_answers() -> bool:
    """A kernel that broke a rule takes the process's whole CUDA context with it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main()
