"""What a GPU is asked for, shown without one: pinned memory, a copy that nothing waits for, its allocator."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from megatron_probsft.models import transfer_overlap
from megatron_probsft.runtime import device, distributed


def test_batches_wait_in_pinned_memory_only_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    array, pinned = np.arange(3), []
    assert device.host_tensor(array).tolist() == [0, 1, 2]
    assert device.even_length() == 1
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert device.host_tensor(array) is pinned[0]
    assert device.even_length() == 128


def test_a_copy_to_the_host_is_waited_for_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    class OnGpu:
        is_cuda = True

        def to(self, where: str, *, non_blocking: bool) -> torch.Tensor:
            assert (where, non_blocking) == ("cpu", True)
            happened.append("copy")
            return torch.tensor([1.0, 2.0])

    event = types.SimpleNamespace(synchronize=lambda: happened.append("wait"))
    stream = types.SimpleNamespace(record_event=lambda: happened.append("record") or event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    on_its_way = device.ToHost(OnGpu())  # type: ignore[arg-type]
    assert happened == ["copy", "record"]
    assert on_its_way.tolist() == [1.0, 2.0]
    assert happened == ["copy", "record", "wait"]
    assert device.ToHost(torch.tensor([3.0])).tolist() == [3.0]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_segments_of_gpu_memory_grow_unless_the_user_says_otherwise(
    name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(one, "")  # to be put back as it was
        monkeypatch.delenv(one)
    if name:
        monkeypatch.setenv(name, "max_split_size_mb:64")
    before = dict(os.environ)
    taken: list[tuple[int, str | None]] = []
    monkeypatch.setattr(distributed, "gpu_count", lambda: 4)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda rank: taken.append((rank, os.environ.get("PYTORCH_ALLOC_CONF")))
    )
    distributed._take_gpu(3)
    if name:
        assert dict(os.environ) == before
    else:
        assert taken == [(3, "expandable_segments:True")]


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("is_new", [False, True])
def test_buffers_of_overlapped_transfers(is_new: bool, fp8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine is told of FP8 in another way from 2.7 on."""
    calls: list[dict[str, Any]] = []
    base = types.SimpleNamespace(
        initialize_ub=lambda **given: calls.append(given),
        UserBufferQuantizationMode=types.SimpleNamespace(FP8="fp8", NONE="none"),
    )
    parts = ["transformer_engine", "pytorch", "module", "base"]
    for end in range(1, 4):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType("package"))
    monkeypatch.setitem(sys.modules, ".".join(parts), base)  # type: ignore[arg-type]
    monkeypatch.setattr(transfer_overlap, "is_te_min_version", lambda _: is_new)
    monkeypatch.setattr(transfer_overlap.parallel_state, "get_tensor_model_parallel_world_size", lambda: 4)
    transfer_overlap.start_transfer_overlap(8192, 4096, fp8=fp8)
    precision = {"quantization_modes": ["fp8" if fp8 else "none"]} if is_new else {"use_fp8": fp8}
    expected = {"shape": [8192, 4096], "tp_size": 4, "ub_cfgs": {}, "bootstrap_backend": "nccl"}
    assert calls == [expected | precision]
