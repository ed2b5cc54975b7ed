"""Copies in pinned memory: what may overwrite waits, and torch.save writes them alone. No GPU is needed.

A stand-in for CUDA's streams makes the copies as late as it may: when somebody waits for them.
"""

from __future__ import annotations

import contextlib
import io
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_probsft.runtime import host_copies
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.host_copies import HostCopies, storage_of_its_own


class _Late(TorchDispatchMode):
    """Keeps copies back."""

    def __init__(self, work: list[Callable[[], Any]]) -> None:
        super().__init__()
        self._work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            assert args[2] is True, "it waits for each copy"
            self._work.append(lambda: func(*args[:2]))
            return args[0]
        return func(*args, **(kwargs or {}))


class _Stream:
    """A stream, and an event of it."""

    device = None

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []
        self.waited_for: list[Any] = []

    def wait_stream(self, stream: Any) -> None:
        self.waited_for.append(stream)

    def record_event(self) -> _Stream:
        return self

    def wait_event(self, event: _Stream) -> None:
        event.synchronize()

    def synchronize(self) -> None:
        while self.work:
            self.work.pop(0)()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Streams and pinned memory as CUDA has them; the sizes of what is pinned."""
    sizes: list[int] = []

    def register(_address: int, nbytes: int, _flags: int) -> int:
        sizes.append(nbytes)
        return 0

    cuda = types.SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=lambda _: 0)
    current = _Stream()
    monkeypatch.setattr(host_copies, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "Stream", _Stream)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: _Late(stream.work))
    return sizes


@pytest.mark.parametrize("guarded", [True, False])
def test_a_step_waits_until_the_copies_are_taken(guarded: bool, registered: list[int]) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    before = weight.detach().clone()
    optimizer, copies = torch.optim.AdamW([weight], lr=1.0), HostCopies()
    if guarded:
        copies.guard(optimizer)
    (copy,) = copies.take([weight.detach()])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    copies.wait()
    assert torch.equal(copy, before) == guarded
    assert not torch.equal(weight, before)


def test_the_memory_is_pinned_once_and_each_copy_is_saved_alone(registered: list[int]) -> None:
    tensors = [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.tensor(2.0), torch.randn(2, 1)[:0]]
    copies = HostCopies()
    first = copies.take(tensors)
    copies.wait()
    for tensor, copy in zip(tensors, first, strict=True):
        assert torch.equal(tensor, copy)
        assert copy.dtype == tensor.dtype
        file = io.BytesIO()
        torch.save(copy, file)
        file.seek(0)
        assert torch.load(file).untyped_storage().nbytes() == tensor.nbytes
    second = copies.take(tensors)
    assert [copy.data_ptr() for copy in second[:3]] == [copy.data_ptr() for copy in first[:3]]
    assert registered == [3 * 64]


def test_memory_that_cannot_be_pinned_is_told(registered: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(cudaHostRegister=lambda *_: 2)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    with pytest.raises(UserError, match=r"cannot be pinned for --async-save \(CUDA error 2\): train without"):
        HostCopies().take([torch.zeros(3)])


def test_a_view_gets_a_storage_of_its_own_without_a_copy() -> None:
    whole = torch.arange(12.0).bfloat16().view(3, 4)
    rows = storage_of_its_own(whole[1:])
    assert rows.untyped_storage().nbytes() == rows.nbytes
    assert rows.data_ptr() == whole[1:].data_ptr()
    assert torch.equal(rows, whole[1:])
    columns = storage_of_its_own(whole[:, 1:])
    assert columns.untyped_storage().nbytes() == columns.nbytes
    assert torch.equal(columns, whole[:, 1:])
