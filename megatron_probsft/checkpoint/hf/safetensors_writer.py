"""Write a Hugging Face folder's weights tensor by tensor: first the headers, then bytes to their places.

The format: 8 bytes with the header's length, the header (JSON: dtype, shape and byte range by name), the
tensors (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_probsft.checkpoint.hf.safetensors_folder import DTYPES, INDEX, SINGLE
from megatron_probsft.runtime.folders import pieces, to_disk

MAX_FILE_BYTES = 5 * 10**9
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorPlan:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsWriter:
    """Files of at most `MAX_FILE_BYTES` with an index, named as transformers names them.

    Every process that writes plans the same tensors; one of them calls `create`, then each writes any of
    them, each tensor once. Tensors lie in the order of their names, layer 2 before layer 10.
    """

    def __init__(self, folder: Path, tensors: list[TensorPlan]) -> None:
        self._folder = folder
        by_file = _divided(tensors)
        self._place: dict[str, tuple[str, int, TensorPlan]] = {}
        self._headers: dict[str, bytes] = {}
        for number, group in enumerate(by_file, start=1):
            file = SINGLE
            if len(by_file) > 1:
                file = f"model-{number:05d}-of-{len(by_file):05d}.safetensors"
            self._headers[file], starts = _header(group)
            for tensor, start in zip(group, starts, strict=True):
                self._place[tensor.name] = (file, len(self._headers[file]) + start, tensor)

    def create(self) -> None:
        """Make the files, their headers and the index; space for the tensors is not yet taken."""
        for file, header in self._headers.items():
            (self._folder / file).write_bytes(header)
            sizes = [offset + plan.nbytes for where, offset, plan in self._place.values() if where == file]
            os.truncate(self._folder / file, max(sizes))
        if len(self._headers) > 1:
            index = {
                "metadata": {"total_size": sum(plan.nbytes for _, _, plan in self._place.values())},
                "weight_map": {name: file for name, (file, _, _) in sorted(self._place.items())},
            }
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def write(self, name: str, tensor: torch.Tensor, first_row: int = 0) -> None:
        """Put a tensor, or its rows from `first_row` on, cast to the planned dtype, in its place.

        Threads may call it at the same time.
        """
        file, offset, plan = self._place[name]
        assert tensor.shape[1:] == plan.shape[1:], f"{name}: {tuple(tensor.shape)}, planned {plan.shape}"
        assert first_row + len(tensor) <= plan.shape[0]
        offset += first_row * math.prod(plan.shape[1:]) * plan.dtype.itemsize
        flat = tensor.to("cpu", plan.dtype).contiguous().flatten().view(torch.uint8)
        descriptor = os.open(self._folder / file, os.O_WRONLY)
        try:
            for piece in pieces(flat.numpy()):
                while piece:
                    written = os.pwrite(descriptor, piece, offset)
                    piece, offset = piece[written:], offset + written
        finally:
            os.close(descriptor)

    def flush(self) -> None:
        """Wait until what this process wrote is on the disk."""
        for file in self._headers:
            to_disk(self._folder / file)


def _divided(tensors: list[TensorPlan]) -> list[list[TensorPlan]]:
    """The tensors of each file, in the order in which they lie there."""
    groups: list[list[TensorPlan]] = [[]]
    size = 0
    for tensor in sorted(tensors, key=lambda tensor: _natural(tensor.name)):
        if groups[-1] and size + tensor.nbytes > MAX_FILE_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    # Wide types first, as safetensors does: every tensor starts at a multiple of its element's size.
    return [sorted(group, key=lambda tensor: -tensor.dtype.itemsize) for group in groups]


def _natural(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _header(tensors: list[TensorPlan]) -> tuple[bytes, list[int]]:
    """The header's bytes, and where each tensor starts after it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts = []
    end = 0
    for tensor in tensors:
        starts.append(end)
        end += tensor.nbytes
        entries[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [starts[-1], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors' bytes are aligned
    return len(text).to_bytes(8, "little") + text, starts
