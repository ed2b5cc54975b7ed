"""Kernels and head against float64; a model and its training in every place; resume; conversion."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.gpu.kit.place import Place, WrongError
from benchmarks.gpu.kit.tiny_process import TRANSFORMER_ENGINE, KilledError, TinyProcess, work

STEPS = 20
CHECKPOINT, END = 3, 8
"""The step of the checkpoint that a killed run goes on from, `tiny_run.KILLED_FROM` being later; the last."""


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    from benchmarks.gpu.kit import kernels

    found = dict(kernels.rows(place))
    there = [TinyProcess("cpu", "local", "bf16")]
    if not place.small:
        layers = (("local", "bf16"), ("local", "float32"), (TRANSFORMER_ENGINE, "bf16"))
        there = [TinyProcess("cuda", *one) for one in layers]
    for process in there:
        found[str(process)] = functools.partial(_against_float32, process)
    for process in there:
        if process.dtype == "bf16":
            found[f"killed and resumed, converted; {process}"] = functools.partial(_resume, process)
    return found


@functools.cache
def _losses(process: TinyProcess) -> dict[str, Any]:
    return process.do("losses", "losses", train_iters=STEPS)


def _against_float32(process: TinyProcess) -> dict[str, Any]:
    """Compare a place with the CPU in float32, by the yardstick of what bfloat16 changes on the CPU."""
    on_cpu = [TinyProcess("cpu", "local", dtype) for dtype in ("float32", "bf16")]
    there = dict.fromkeys([process, *on_cpu])
    work()  # made once, before the threads
    with ThreadPoolExecutor() as pool:  # most of a process's time is the CPU's: its imports
        losses = dict(zip(there, pool.map(_losses, there), strict=True))
    found, exact, usual = losses[process], *(losses[one] for one in on_cpu)
    record: dict[str, Any] = {"layer": found["layer"]}
    wrong = []
    if found["layer"].startswith("TE") != (process.layers == TRANSFORMER_ENGINE):
        wrong.append(f"the layers are {found['layer']}")
    for key in ("log_p", "losses", "norms"):
        off, of_cpu = _distance(found[key], exact[key]), _distance(usual[key], exact[key])
        record |= {f"distance_{key}": off, f"distance_{key}_cpu": of_cpu}
        if not off <= 1e-3 + (3 * of_cpu if process.dtype == "bf16" else 0):
            wrong.append(f"{key} differ by {off:.1e}, where bfloat16 on the CPU has {of_cpu:.1e}")
    if wrong:
        raise WrongError("; ".join(wrong))
    return record | {
        "result": f"{found['layer']}: log p of {len(exact['log_p'])} tokens within "
        f"{record['distance_log_p']:.1e}, {STEPS} losses within {record['distance_losses']:.1e} "
        f"of float32 on the CPU, where bf16 has {record['distance_log_p_cpu']:.1e} and "
        f"{record['distance_losses_cpu']:.1e}"
    }


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        raise WrongError(f"{len(one)} numbers where the CPU has {len(other)}")
    return max(abs(a - b) / max(abs(b), 0.1) for a, b in zip(one, other, strict=True))


def _resume(process: TinyProcess) -> dict[str, Any]:
    """A killed and resumed run goes on, and ends, as one that was not; weights convert there and back."""
    settings = {"train_iters": END, "save_interval": CHECKPOINT}
    work()
    with ThreadPoolExecutor() as pool, contextlib.suppress(KilledError):
        whole_run = pool.submit(process.do, "train", "whole", **settings)
        process.do("train_and_die", "killed", **settings)
        raise WrongError("the run that was to be killed went on to its end")
    whole_run.result()
    killed = process.steps("killed")
    process.do("train", "killed", load=str(process.folder("killed")), hf_model=None, **settings)
    whole, resumed = process.steps("whole"), process.steps("killed")
    first = CHECKPOINT + 1
    if killed[first][0] != resumed[first][0]:
        raise WrongError(f"step {first}'s loss is {killed[first][0]}, and {resumed[first][0]} when resumed")
    bitwise = whole == resumed
    if not bitwise:
        process.do("train", "again", **settings)
        _check_noise(whole, process.steps("again"), resumed)
    runs = [str(process.folder(name)) for name in ("whole", "killed")]
    equal = process.do("convert", "converted", runs=runs)
    if not equal["conversion"] or (bitwise and not equal["runs"]):
        raise WrongError(f"equal bit for bit: {equal}")
    how = "losses, norms and weights" if bitwise else "the next loss (kernels add in changing orders)"
    return {
        "bitwise": bitwise,
        "result": f"killed and resumed from step {CHECKPOINT}: {how} equal bit for bit; so are weights "
        "converted there and back",
    }


def _check_noise(
    whole: dict[int, tuple[float, float]],
    again: dict[int, tuple[float, float]],
    resumed: dict[int, tuple[float, float]],
) -> None:
    """Where a run that is done twice differs from itself, a resumed one may differ as much, and no more."""

    def distance(other: dict[int, tuple[float, float]]) -> float:
        return _distance([other[step][0] for step in whole], [loss for loss, _ in whole.values()])

    noise, off = distance(again), distance(resumed)
    if off > 5 * noise:
        raise WrongError(f"losses differ by {off:.1e} after the resume; a run done twice, by {noise:.1e}")
