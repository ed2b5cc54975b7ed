"""Write a checkpoint, in the foreground or in a thread while training goes on."""

from __future__ import annotations

import errno
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.filesystem import _StorageWriterTransforms

from megatron_probsft.checkpoint.megatron import run_folder as folders
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.checkpoint.megatron.torch_dist import CONTENT
from megatron_probsft.checkpoint.megatron.torch_dist_reader import Place
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.device import current_device, has_gpu
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import pieces
from megatron_probsft.runtime.megatron_patches import results_queue

ReadBlock = Callable[[Place], torch.Tensor]
"""read(place) gives a block of a checkpoint's tensor, on the CPU, with storage of its own."""


@dataclass(frozen=True)
class Streaming:
    """Tensors that are read when they are written, for a state dict that lies on the meta device."""

    read: ReadBlock
    files: int
    """Number of files that are written at the same time."""


class Save:
    """One checkpoint on its way to the disk; every method is called by all ranks.

    Megatron-Core plans the files and writes their format. What it leaves open is done here: the bytes are
    written by a thread, and a failure anywhere (a full disk) is one message on every rank, never a hang.
    """

    def __init__(
        self,
        run_folder: Path,
        step: int,
        state_dict: dict[str, Any],
        side_files: SideFiles,
        *,
        in_background: bool = False,
        streaming: Streaming | None = None,
    ) -> None:
        """Plan the checkpoint of `step` and start to write it.

        Args:
            state_dict: sharded tensors and objects, and plain values that are equal on every rank.
            in_background: the tensors may change from here on: host memory takes a copy of them first.
            streaming: gives the tensors where those of the state dict lie on the meta device.

        Raises:
            UserError: the folder cannot be written.
        """
        self.step = step
        self._run_folder, self._side_files = run_folder, side_files
        self._part = folders.part_folder(run_folder, step)
        self._on_first_rank(self._make_part)
        results_queue.apply()
        self._strategy = _Strategy(thread_count=streaming.files if streaming else 1)
        dist_checkpointing.save(
            state_dict,
            str(self._part),
            sharded_strategy=self._strategy,
            async_sharded_save=True,
            async_strategy="mcore",
            content_metadata=CONTENT,
        )
        self._thread = threading.Thread(
            target=_write,
            args=(self._strategy.writer, _buckets(self._strategy.writer, in_background, streaming)),
        )
        self._thread.daemon = True  # a run that fails does not wait for it
        self._thread.start()

    def is_written(self) -> bool:
        """True once every rank has written its files. Collective: one all-reduce of an integer."""
        writing = torch.tensor(int(self._thread.is_alive()), device=current_device())
        dist.all_reduce(writing, op=dist.ReduceOp.MAX)
        return not int(writing)

    def finish(self) -> Path:
        """The checkpoint's folder, once all is written and it has its name. Collective.

        Raises:
            UserError: a file could not be written; the checkpoints before this one are untouched.
        """
        self._thread.join()
        distributed.wait_for_all("writing a checkpoint")  # a slow disk is no reason for a time-out
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, self._strategy.writer.retrieve_write_results())
        failures = [result for result in results if not isinstance(result, list)]
        if failures:
            self._give_up(str(failures[0][0]).removeprefix("Worker failure: "))
        self._on_first_rank(lambda: self._complete(results))
        return folders.checkpoint_folder(self._run_folder, self.step)

    def _make_part(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)

    def _complete(self, results: list[Any]) -> None:
        self._strategy.writer.finish(self._strategy.metadata, results)
        save_config(CheckpointingConfig(self._strategy.backend, self._strategy.version), str(self._part))
        self._side_files.write(self._part)
        folders.publish_checkpoint(self._run_folder, self.step)

    def _on_first_rank(self, work: Any) -> None:
        try:
            distributed.on_first_rank(work, "finishing a checkpoint")
        except OSError as error:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        if dist.get_rank() == 0:
            shutil.rmtree(self._part, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {self.step} could not be written to {self._run_folder}: {reason}; "
            "those before it are untouched"
        )


class _Strategy(TorchDistSaveShardedStrategy):
    """Megatron-Core's own strategy, which keeps the writer and (on rank 0) the global metadata for us."""

    writer: FileSystemWriterAsync
    metadata: Any

    def _get_save_and_finalize_callbacks(
        self, writer: Any, save_state_dict_ret: Any, async_strategy: str
    ) -> Any:
        self.writer, self.metadata = writer, save_state_dict_ret[1]
        return super()._get_save_and_finalize_callbacks(writer, save_state_dict_ret, async_strategy)


def _buckets(writer: FileSystemWriterAsync, copy: bool, streaming: Streaming | None) -> list[Any]:
    """This rank's tensors by file: in host memory, or read when they are written."""
    if streaming is not None:
        return [
            (path, key, (objects, _Streamed(tensors, streaming.read)))
            for path, key, (objects, tensors) in writer.write_buckets or []
        ]
    buckets = FileSystemWriterAsync.preload_tensors(writer.write_buckets or [])  # copies a device's
    if not copy or has_gpu():
        return buckets
    return [
        (path, key, (objects, [(item, tensor.clone()) for item, tensor in tensors]))
        for path, key, (objects, tensors) in buckets
    ]


class _Streamed:
    """Pairs of write item and tensor, whose tensors are read one by one as the file grows."""

    def __init__(self, tensors: list[tuple[Any, torch.Tensor]], read: ReadBlock) -> None:
        self._tensors, self._read = tensors, read
        self.current_bytes = 0

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        for item, tensor in self._tensors:
            self.current_bytes = tensor.nbytes
            yield item, self._read((item.index.fqn, tuple(item.index.offset)))


class _InPieces(_StorageWriterTransforms):
    """Each tensor goes to its file as it is, in small writes."""

    def transform_save_stream(self, write_item: Any, raw_stream: Any) -> tuple[Any, list[str]]:
        return _Pieces(raw_stream), []


class _Pieces(io.RawIOBase):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        for piece in pieces(content):
            self._stream.write(piece)
        return memoryview(content).nbytes


def _write(writer: FileSystemWriterAsync, buckets: list[Any]) -> None:
    """Write this rank's files; their entries, or what went wrong, go to the writer's queue."""
    if not buckets:
        return
    write = partial(FileSystemWriterAsync.write_preloaded_data, [_InPieces()], results_queue=None)
    results: dict[int, Any] = {}

    def write_one(index: int) -> None:
        # torch.save's CRC-32, which torch.load does not look at, takes longer than writing. (Of a thread.)
        torch.serialization.set_crc32_options(False)
        outcome = write(local_proc_idx=index, write_bucket=buckets[index], count_queue=None, use_fsync=True)
        results[index] = outcome[1]  # type: ignore[index]

    # Daemons: a run that fails does not wait for them.
    threads = [threading.Thread(target=write_one, args=(i,), daemon=True) for i in range(len(buckets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [
        _cause(result, buckets[index]) for index, result in results.items() if isinstance(result, Exception)
    ]
    writer.results_queue.put(failures[0] if failures else results)  # type: ignore[union-attr]


def _cause(error: Exception, bucket: Any) -> Exception:
    """The error, or the full disk that torch's archive writer fails to mention."""
    path, _, (_, tensors) = bucket
    if isinstance(error, OSError | UserError):
        return error
    streamed = isinstance(tensors, _Streamed)
    needed = tensors.current_bytes if streamed else sum(tensor.nbytes for _, tensor in tensors)
    if shutil.disk_usage(Path(path).parent).free < needed:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error
