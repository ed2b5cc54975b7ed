"""A Hugging Face model folder: its tensors, read by slices, and the files beside them."""

from __future__ import annotations

import json
import math
import mmap
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from megatron_probsft.runtime.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SIDE_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*", "additional_chat_templates/*", "tekken.json", "generation_config.json",
    "trained_turns.json",
)  # fmt: skip
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""safetensors' names of the dtypes that weights may have."""


class TensorReader:
    """The tensors of a folder by name, read by slices from safetensors; the rest is not read.

    Raises:
        UserError: no safetensors, an index that names a missing file, a truncated file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        for file in self._files():
            try:
                with safe_open(folder / file, framework="pt"):  # finds what is truncated or damaged
                    self._entries.update(_entries(folder / file))
            except FileNotFoundError:
                raise UserError(f"{folder / file} is missing, but {INDEX} names it") from None
            except SafetensorError as error:
                raise UserError(f"{folder / file} is truncated or damaged: {error}") from None

    def names(self) -> set[str]:
        return set(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype. Raises UserError for quantized weights, those that are not of floating point."""
        dtype = self._entries[name].dtype
        if dtype not in DTYPES:
            raise UserError(
                f"{self.folder}: {name} has dtype {dtype}; supported: {', '.join(DTYPES)} (not quantized)"
            )
        return DTYPES[dtype]

    def read(self, name: str, *slices: slice) -> torch.Tensor:
        """A tensor, or only these rows (and columns) of it, on the CPU, in the file's dtype.

        Rows are mapped: nothing is copied, and what is mapped goes with the tensor.
        """
        entry = self._entries[name]
        if len(slices) > 1:
            with safe_open(entry.file, framework="pt") as file:
                return file.get_slice(name)[slices].clone()
        dtype = self.dtype(name)
        first, end, _ = (slices or (slice(None),))[0].indices(entry.shape[0])
        shape = (max(end - first, 0), *entry.shape[1:])
        count, row = math.prod(shape), math.prod(entry.shape[1:])
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        offset = entry.offset + first * row * dtype.itemsize
        before = offset % mmap.ALLOCATIONGRANULARITY
        length = before + count * dtype.itemsize
        with entry.file.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset - before)
        return torch.frombuffer(mapped, dtype=dtype, count=count, offset=before).view(shape)

    def _files(self) -> list[str]:
        if (self.folder / INDEX).is_file():
            try:
                return sorted(set(json.loads((self.folder / INDEX).read_text())["weight_map"].values()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{self.folder / INDEX} is damaged: {type(error).__name__} {error}") from None
        if (self.folder / SINGLE).is_file():
            return [SINGLE]
        raise UserError(f"{self.folder} holds no weights: neither {SINGLE} nor {INDEX}")


@dataclass(frozen=True)
class _Entry:
    """The place of a tensor in a file."""

    file: Path
    dtype: str
    """The name that safetensors uses."""
    shape: tuple[int, ...]
    offset: int
    """Position of its first byte in the file."""


def _entries(file: Path) -> dict[str, _Entry]:
    """The file's tensors by its header. Its format: 8 bytes with the header's length, JSON, the tensors."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(length))
    return {
        name: _Entry(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy tokenizer, chat templates, generation config and, last, config.json. Returns their names."""
    target.mkdir(parents=True, exist_ok=True)
    files = [*(file for glob in _SIDE_FILES for file in sorted(source.glob(glob))), source / "config.json"]
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    return [str(file.relative_to(source)) for file in files]


def set_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Write the weights' dtype into config.json; every other field stays as it came."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = "dtype" if "dtype" in config else "torch_dtype"
    name = str(dtype).removeprefix("torch.")
    if config.get(key) == name:
        return
    config[key] = name
    path.write_text(json.dumps(config, indent=2) + "\n")
