"""A process believes in one CUDA device, for fake tensors only: `pretend` before anything asks for one."""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

_SOURCE = Path(__file__).with_name("cuda_device.cpp")


on_wait: list[Callable[[], None]] = []
"""They are called when the host waits for all that the device has to do."""


def _wait(*_: Any) -> None:
    for listener in on_wait:
        listener()


class _Stream:
    """A stream or an event: for the device to wait for it costs the host nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    cuda_stream = 0

    def wait_stream(self, stream: Any) -> None:
        pass

    def wait_event(self, event: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        pass

    synchronize = _wait

    def record_event(self, event: Any = None) -> _Stream:
        return self


_CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda device: None,
    "get_device_capability": lambda device=None: (9, 0),
    "current_stream": lambda device=None: _Stream(),
    "Stream": _Stream,
    "Event": _Stream,
    "stream": contextlib.nullcontext,
    "synchronize": _wait,
    "manual_seed": lambda seed: None,
    "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
    "_lazy_init": lambda: None,
}


def pretend() -> None:
    """Let fake tensors be on `cuda`, backward passes included, for the rest of this process."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "cuda_device.so"
        root = Path(torch.__file__).parent
        subprocess.run(
            ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}", str(_SOURCE), "-o",
             str(library), f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu"],
            check=True,
        )  # fmt: skip
        ctypes.CDLL(str(library)).pretend()
    FakeTensorMode.avoid_device_init = True  # type: ignore[assignment]
    torch._C._ensureCUDADeviceGuardSet = lambda: None  # a fake mode would put its own guard in the place
    for name, replacement in _CUDA.items():
        setattr(torch.cuda, name, replacement)
    torch.cuda.random.get_rng_state = _CUDA["get_rng_state"]
    torch.Tensor.record_stream = lambda self, *args: None  # type: ignore[method-assign]
    torch.Tensor.pin_memory = lambda self, *args: self  # type: ignore[method-assign]
    torch.nn.Module.to = _to  # type: ignore[method-assign]


def _to(self: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Replace parameters that are elsewhere: fake ones can't be moved in place."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.device != device:
                moved = torch.nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
                for key, value in vars(parameter).items():  # not its device, which a fake tensor has there
                    vars(moved).setdefault(key, value)  # type: ignore[attr-defined]
                module._parameters[name] = moved
    return self
