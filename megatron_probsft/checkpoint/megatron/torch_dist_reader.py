"""Read blocks of a `torch_dist` checkpoint one at a time, without a model and without Megatron."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_probsft.runtime.errors import UserError

Place = tuple[str, tuple[int, ...]]
"""The key and the offset of a block."""


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

    def _load(self, item: ReadItem) -> torch.Tensor:
        """A stored tensor, as it was saved."""
        where = self._reader.storage_data[item.storage_index]
        with (self._checkpoint / where.relative_path).open("rb") as file:
            part = self._reader._slice_file(file, where)
            return torch.load(part, map_location="cpu", weights_only=True)
