"""Read blocks of a `torch_dist` checkpoint one at a time: its files, without a model and without Megatron."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_probsft.runtime.errors import UserError

Place = tuple[str, tuple[int, ...]]
"""(key, offset) of a block."""


class BlockReader:
    """Blocks of tensors, whatever layout saved them. Threads may read at the same time.

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
        target = torch.empty(self._shapes[place], dtype=self.tensors[place[0]].properties.dtype)
        items = self._items[place]
        if sum(item.lengths.numel() for item in items) != target.numel():
            raise UserError(f"checkpoint {self._checkpoint}: a part of {place[0]} at {place[1]} is missing")
        try:
            self._reader.read_data(LoadPlan(items), _Into(target)).wait()
        except (OSError, RuntimeError, EOFError, AssertionError) as error:
            raise UserError(f"checkpoint {self._checkpoint}: {place[0]} cannot be read: {error}") from None
        return target


class _Into(DefaultLoadPlanner):
    """All that is read lands in one tensor."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._target
