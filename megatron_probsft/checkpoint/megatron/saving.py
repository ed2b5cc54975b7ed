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
from torch.distributed.checkpoint.filesystem import _StorageWriterTransforms

from megatron_probsft.checkpoint.megatron import run_folder as folders
from megatron_probsft.checkpoint.megatron.save_strategy import SaveStrategy
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.checkpoint.megatron.torch_dist import CONTENT
from megatron_probsft.checkpoint.megatron.torch_dist_reader import Place
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import pieces
from megatron_probsft.runtime.host_copies import HostCopies
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
        copies: HostCopies | None = None,
        streaming: Streaming | None = None,
    ) -> None:
        """Plan the checkpoint of `step` and start to write it.

        Args:
            state_dict: sharded tensors and objects, and plain values that are equal on every rank.
            copies: take the tensors to be written, which may then change; without them, nothing may change
                before `finish`, and the host holds one tensor of a GPU at a time.
            streaming: gives the tensors where those of the state dict lie on the meta device.

        Raises:
            UserError: the folder cannot be written.
        """
        self.step = step
        self._run_folder, self._side_files = run_folder, side_files
        self._part = folders.part_folder(run_folder, step)
        self._on_first_rank(self._make_part)
        results_queue.apply()
        self._strategy = SaveStrategy(thread_count=streaming.files if streaming else 1)
        dist_checkpointing.save(
            state_dict,
            str(self._part),
            sharded_strategy=self._strategy,
            validate_access_integrity=False,  # with it, every rank gets a list of all ranks' tensors
            async_sharded_save=True,
            async_strategy="mcore",
            content_metadata=CONTENT,
        )
        self._thread = threading.Thread(
            target=_write,
            args=(self._strategy.writer, _buckets(self._strategy.writer, copies, streaming), copies),
        )
        self._thread.daemon = True  # a run that fails does not wait for it
        self._thread.start()

    def is_written(self) -> bool:
        """True once every rank has written its files. Collective: one all-reduce of an integer."""
        return not distributed.largest(int(self._thread.is_alive()))

    def finish(self) -> Path:
        """The checkpoint's folder, once all is written and it has its name. Collective.

        Raises:
            UserError: a file could not be written; the checkpoints before this one are untouched.
        """
        self._thread.join()
        distributed.wait_for_all("writing a checkpoint")  # a slow disk is no reason for a time-out
        results: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(self._strategy.writer.retrieve_write_results(), results)
        self._on_first_rank(lambda: self._complete(results or []))
        return folders.checkpoint_folder(self._run_folder, self.step)

    def _make_part(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
        self._part.mkdir(parents=True)

    def _complete(self, results: list[Any]) -> None:
        failures = [result for result in results if not isinstance(result, list)]
        if failures:
            raise OSError(str(failures[0][0]).removeprefix("Worker failure: "))
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


def _buckets(
    writer: FileSystemWriterAsync, copies: HostCopies | None, streaming: Streaming | None
) -> list[Any]:
    """This rank's tensors by file: copies of them, or what is brought to the host when it is written."""
    buckets = writer.write_buckets or []
    if copies is not None:
        taken = iter(copies.take([tensor for *_, (_, tensors) in buckets for _, tensor in tensors]))
        return [
            (path, key, (objects, [(item, next(taken)) for item, _ in tensors]))
            for path, key, (objects, tensors) in buckets
        ]
    return [
        (path, key, (objects, _OneByOne(tensors, streaming))) for path, key, (objects, tensors) in buckets
    ]


class _OneByOne:
    """Pairs of write item and tensor, whose tensors come to the host one by one as the file grows."""

    def __init__(self, tensors: list[tuple[Any, torch.Tensor]], streaming: Streaming | None) -> None:
        self._tensors, self._streaming = tensors, streaming
        self.needed_bytes = sum(tensor.nbytes for _, tensor in tensors)

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        for item, tensor in self._tensors:
            if self._streaming is None:
                yield item, tensor.cpu()
                continue
            self.needed_bytes = tensor.nbytes
            yield item, self._streaming.read((item.index.fqn, tuple(item.index.offset)))


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


def _write(writer: FileSystemWriterAsync, buckets: list[Any], copies: HostCopies | None) -> None:
    """Write this rank's files; their entries, or what went wrong, go to the writer's queue."""
    if not buckets:
        return
    if copies is not None:
        copies.wait()
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
    late = isinstance(tensors, _OneByOne)
    needed = tensors.needed_bytes if late else sum(tensor.nbytes for _, tensor in tensors)
    if shutil.disk_usage(Path(path).parent).free < needed:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error
