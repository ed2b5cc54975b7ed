"""Whole steps of Qwen2.5-1.5B's shape on packed chats: this trainer, Megatron-Core's loss, transformers.

All take the same samples in the same packs, forward, backward and update; tokens are counted where they are
supervised. MFU is by `training.log.flops`, which counts the head for supervised tokens only.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.kit.place import NotHereError, Place, WrongError, hide

TRANSFORMER_ENGINE = "Transformer Engine"
WITHOUT_LIGER = "local without liger-kernel"
OURS = "megatron_probsft"


def rows(place: Place) -> dict[str, Callable[[], dict[str, Any]]]:
    # Nothing of Megatron-Core is imported here: each row has a process of its own, with or without TE.
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for name in (f"{OURS}, local", f"{OURS}, {TRANSFORMER_ENGINE}", f"{OURS}, {WITHOUT_LIGER}"):
        found[name] = functools.partial(_ours, place, name)
    found["transformers"] = functools.partial(_transformers, place)
    found["Megatron-Core's fused loss, local"] = functools.partial(_ours, place, "local", "megatron_fused")
    found["Megatron-Core's unfused loss, local"] = functools.partial(
        _ours, place, "local", "megatron_unfused"
    )
    if place.small:
        del found["Megatron-Core's fused loss, local"]  # torch.compile takes minutes on a CPU
    return found


def _ours(place: Place, name: str, loss: str | None = None) -> dict[str, Any]:
    if TRANSFORMER_ENGINE not in name:
        hide("transformer_engine")
    elif importlib.util.find_spec("transformer_engine") is None:
        raise NotHereError("transformer-engine is not installed")
    if WITHOUT_LIGER in name:
        if importlib.util.find_spec("liger_kernel") is None:
            raise NotHereError("liger-kernel is not installed, so the first row is without it")
        hide("liger_kernel")
    from benchmarks.gpu.kit.whole_step import WholeStep, timed_steps, use_megatron_loss

    if loss:
        use_megatron_loss(place, loss)
    with tempfile.TemporaryDirectory(prefix="gpu_kit_") as folder:
        whole = WholeStep(place, Path(folder))
        return _record(timed_steps(whole, whole.step), name, whole.shape.vocab_size)


def _transformers(place: Place) -> dict[str, Any]:
    hide("transformer_engine")
    from benchmarks.gpu.kit.hf_loop import HFLoop
    from benchmarks.gpu.kit.whole_step import WholeStep, timed_steps

    with tempfile.TemporaryDirectory(prefix="gpu_kit_") as folder:
        whole = WholeStep(place, Path(folder), data_only=True)
        loop = HFLoop(Path(folder) / "model", place.device)
        return _record(timed_steps(whole, loop.step), loop.name, whole.shape.vocab_size)


def _record(timing: Any, name: str, vocab_size: int) -> dict[str, Any]:
    from megatron_probsft.runtime.device import device_name
    from megatron_probsft.training.log.flops import peak_tflops

    uniform = math.log(vocab_size)
    if not 0.8 * uniform < timing.first_loss < 1.3 * uniform:
        raise WrongError(f"a new model's loss is {timing.first_loss:.3f}, where log V is {uniform:.3f}")
    seconds = sum(timing.seconds)
    tokens, tflops, peak = (
        timing.supervised / seconds,
        timing.flops / seconds / 1e12,
        peak_tflops(device_name()),
    )
    utilization = f", MFU {tflops / peak:.1%}" if peak else ""
    return {
        "implementation": name, "seconds_per_step": statistics.median(timing.seconds),
        "seconds": timing.seconds, "supervised_tokens_per_second": tokens, "model_tflops": tflops,
        "mfu": tflops / peak if peak else None, "peak_bytes": timing.peak_bytes,
        "first_loss": timing.first_loss,
        "result": f"{tokens:8.0f} supervised tokens/s, {statistics.median(timing.seconds):.3f} s per step, "
        f"{tflops:.0f} model TFLOP/s{utilization}, peak {timing.peak_bytes / 2**30:.1f} GiB, "
        f"first loss {timing.first_loss:.3f} ({name})",
    }  # fmt: skip
