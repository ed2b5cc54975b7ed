"""A Hugging Face model folder as tensors: read by slices, written in shards with an index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megatron_probsft.runtime.errors import UserError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SIDE_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*", "generation_config.json",
)  # fmt: skip
MAX_SHARD_BYTES = 5 * 10**9
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""safetensors' names of the dtypes that weights may have."""


class TensorReader:
    """Tensors of a folder by name, sliced straight from safetensors without reading the rest.

    Raises:
        UserError: no safetensors, an index that names a missing file, a truncated file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: dict[str, safe_open] = {}
        self._file_of: dict[str, str] = {}
        for file in self._files():
            try:
                self._handles[file] = safe_open(folder / file, framework="pt")
            except FileNotFoundError:
                raise UserError(f"{folder / file} is missing, but {_INDEX} names it") from None
            except SafetensorError as error:
                raise UserError(f"{folder / file} is truncated or damaged: {error}") from None
            self._file_of.update(dict.fromkeys(self._handles[file].keys(), file))

    def names(self) -> set[str]:
        return set(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Raises UserError for one that is not of floating point: quantized weights."""
        dtype = self._slice(name).get_dtype()
        if dtype not in DTYPES:
            raise UserError(
                f"{self.folder}: {name} has dtype {dtype}; supported: {', '.join(DTYPES)} (not quantized)"
            )
        return DTYPES[dtype]

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a tensor, on the CPU, in the file's dtype: read when they are used, dropped with them."""
        # A file that stayed open would keep all that was read of it in memory.
        with safe_open(self.folder / self._file_of[name], framework="pt") as file:
            return file.get_slice(name)[rows]

    def _slice(self, name: str):
        return self._handles[self._file_of[name]].get_slice(name)

    def _files(self) -> list[str]:
        if (self.folder / _INDEX).is_file():
            return sorted(set(json.loads((self.folder / _INDEX).read_text())["weight_map"].values()))
        if (self.folder / _SINGLE).is_file():
            return [_SINGLE]
        raise UserError(f"{self.folder} holds no weights: neither {_SINGLE} nor {_INDEX}")


def write_shards(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, prefix: str) -> dict[str, str]:
    """Write tensors, as they come, into files `prefix-00001.safetensors`, … of at most `MAX_SHARD_BYTES`.

    Returns:
        name → file name, for `write_index`.
    """
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        if shard:
            file = f"{prefix}-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)  # safetensors writes for the owner only
            weight_map.update(dict.fromkeys(shard, file))
            shard.clear()

    size = 0
    for name, tensor in tensors:
        if size + tensor.nbytes > MAX_SHARD_BYTES:
            flush()
            size = 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    flush()
    return weight_map


def write_index(weight_map: dict[str, str], folder: Path) -> None:
    """Name the shard files as transformers does, and index them where there are several."""
    files = sorted(set(weight_map.values()))
    names = {
        file: _SINGLE if len(files) == 1 else f"model-{i:05d}-of-{len(files):05d}.safetensors"
        for i, file in enumerate(files, start=1)
    }
    for old, new in names.items():
        (folder / old).rename(folder / new)
    if len(files) == 1:
        return
    total = sum((folder / name).stat().st_size for name in names.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[file] for name, file in sorted(weight_map.items())},
    }
    (folder / _INDEX).write_text(json.dumps(index, indent=2))


def copy_side_files(source: Path, target: Path) -> list[str]:
    """Copy config.json, tokenizer, chat template and generation config; the names copied."""
    target.mkdir(parents=True, exist_ok=True)
    files = [source / "config.json", *(file for glob in _SIDE_FILES for file in sorted(source.glob(glob)))]
    for file in files:
        shutil.copyfile(file, target / file.name)
    return [file.name for file in files]


def set_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Say the weights' dtype in config.json; every other field stays as it came."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = "dtype" if "dtype" in config else "torch_dtype"
    name = str(dtype).removeprefix("torch.")
    if config.get(key) == name:
        return
    config[key] = name
    path.write_text(json.dumps(config, indent=2) + "\n")
