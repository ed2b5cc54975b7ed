"""Read blocks of a `torch_dist` checkpoint one at a time, without a model and without Megatron."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_probsft.runtime.errors import UserError

PIECE_BYTES = 32 * 2**20
"""`BlockReader.fill` reads this much at a time."""

Place = tuple[str, tuple[int, ...]]
"""The key and the offset of a block."""


@dataclass(frozen=True)
class Target:
    """A place in memory for a block of a checkpoint's tensor."""

    offset: tuple[int, ...]
    values: torch.Tensor
    """This is filled, whatever its device and dtype; it has the block's shape."""
    may_exceed: bool = False
    """What lies beyond the stored tensor, the padding of a vocabulary, becomes 0."""


class BlockReader:
    """The blocks of a checkpoint's tensors, whatever layout saved them. Threads may read at the same time.

    Raises:
        UserError: the folder's metadata cannot be read.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._reader = FileSystemReader(checkpoint)
        try:
            metadata = self._reader.read_metadata()
        except Exception as error:  # a damaged pickle raises anything
            raise UserError(f"{checkpoint / '.metadata'} cannot be read: {error}") from None
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self.tensors: dict[str, TensorStorageMetadata] = {
            key: entry
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        self.objects = metadata.state_dict_metadata.keys() - self.tensors.keys()
        """The names of all that is not a tensor, each with its place: `NAME/shard_0_1`."""
        self._items: dict[Place, list[ReadItem]] = defaultdict(list)
        self._shapes: dict[Place, tuple[int, ...]] = {}

    def plan(self, blocks: Iterable[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> None:
        """Find where each block (key, offset, shape) lies; call it once, before `read`."""
        by_key: dict[str, list[ChunkStorageMetadata]] = defaultdict(list)
        for key, offset, shape in blocks:
            by_key[key].append(ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)))
            self._shapes[key, offset] = shape
        for key, chunks in by_key.items():
            for item in create_read_items_for_chunk_list(key, self.tensors[key], chunks):
                assert item.dest_index.offset is not None
                self._items[key, tuple(item.dest_index.offset)].append(item)

    def read(self, place: Place) -> torch.Tensor:
        """A planned block, on the CPU, in the checkpoint's dtype.

        Raises:
            UserError: the checkpoint's files hold less than the block, or cannot be read.
        """
        shape, items = self._shapes[place], self._items[place]
        if sum(item.lengths.numel() for item in items) != math.prod(shape):
            raise UserError(f"checkpoint {self._checkpoint}: a part of {place[0]} at {place[1]} is missing")
        try:
            parts = [
                narrow_tensor_by_index(self._load(item), item.storage_offsets, item.lengths) for item in items
            ]
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise UserError(f"checkpoint {self._checkpoint}: {place[0]} cannot be read: {error}") from None
        if len(parts) == 1:
            return parts[0]
        target = torch.empty(shape, dtype=parts[0].dtype)
        for item, part in zip(items, parts, strict=True):
            narrow_tensor_by_index(target, item.dest_offsets, item.lengths).copy_(part)
        return target

    def fill(self, key: str, targets: Sequence[Target]) -> None:
        """Fill blocks of a tensor; of the files only what they need is read, a few MiB at a time.

        Raises:
            UserError: the checkpoint has no such tensor, or less than a block, or cannot be read.
        """
        if key not in self.tensors:
            raise UserError(f"checkpoint {self._checkpoint} holds no {key}")
        stored = self.tensors[key]
        blocks = [ChunkStorageMetadata(torch.Size(one.offset), one.values.shape) for one in targets]
        items: list[list[ReadItem]] = [[] for _ in targets]
        for item in create_read_items_for_chunk_list(key, stored, blocks):
            assert item.dest_index.index is not None
            items[item.dest_index.index].append(item)
        for target, block, parts in zip(targets, blocks, items, strict=True):
            inside = math.prod(
                max(min(length, size - start), 0)
                for start, length, size in zip(block.offsets, block.sizes, stored.size, strict=True)
            )
            found = sum(part.lengths.numel() for part in parts)
            if found != inside or (found != target.values.numel() and not target.may_exceed):
                raise UserError(
                    f"checkpoint {self._checkpoint}: a part of {key} at {target.offset} is missing"
                )
            if found != target.values.numel():
                target.values.zero_()
            try:
                for part in parts:
                    self._copy(part, narrow_tensor_by_index(target.values, part.dest_offsets, part.lengths))
            except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
                raise UserError(f"checkpoint {self._checkpoint}: {key} cannot be read: {error}") from None

    def _copy(self, item: ReadItem, target: torch.Tensor) -> None:
        """Copy the wanted part of a stored tensor, by rows of the first dimension that has several."""
        where = self._reader.storage_data[item.storage_index]
        with (self._checkpoint / where.relative_path).open("rb") as file:
            archive: Any = self._reader._slice_file(file, where)
            with torch.serialization.skip_data():
                stored: torch.Tensor = torch.load(archive, map_location="meta", weights_only=True)
            if stored.ndim == 0 or not stored.is_contiguous():
                whole = self._load(item)
                target.copy_(narrow_tensor_by_index(whole, item.storage_offsets, item.lengths))
                return
            archive.seek(0)
            records: Any = torch._C.PyTorchFileReader(archive)
            start = where.offset + records.get_record_offset("data/0")
            several = (axis for axis, length in enumerate(item.lengths) if length > 1)
            axis = next(several, stored.ndim - 1)
            row = stored.stride(axis)
            first = narrow_tensor_by_index(stored, item.storage_offsets, item.lengths).storage_offset()
            first -= first % row
            target = target.reshape(target.shape[axis:])
            most = max(PIECE_BYTES // (row * stored.itemsize), 1)
            for begin in range(0, len(target), most):
                into = target[begin : begin + most]
                piece = torch.empty((len(into), *stored.shape[axis + 1 :]), dtype=stored.dtype)
                file.seek(start + (first + begin * row) * stored.itemsize)
                _fill(piece, file)
                inside = (0, *item.storage_offsets[axis + 1 :])
                into.copy_(narrow_tensor_by_index(piece, inside, into.shape))

    def _load(self, item: ReadItem) -> torch.Tensor:
        """A stored tensor, as it was saved."""
        where = self._reader.storage_data[item.storage_index]
        with (self._checkpoint / where.relative_path).open("rb") as file:
            part = self._reader._slice_file(file, where)
            return torch.load(part, map_location="cpu", weights_only=True)


def _fill(tensor: torch.Tensor, file: BinaryIO) -> None:
    memory = tensor.view(-1).view(torch.uint8).numpy()
    if file.readinto(memory) != memory.nbytes:  # type: ignore[attr-defined]
        raise EOFError("the file is too short")
