"""Whole-model conversion between a Hugging Face folder and a Megatron checkpoint, tensor by tensor.

It takes one process, whose memory holds the few tensors that are on their way, never the model. Nothing
unfinished ever has a finished thing's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from megatron.core.dist_checkpointing import load_content_metadata

from megatron_probsft.checkpoint.blocks import Block, blocks_of, split_vocabulary
from megatron_probsft.checkpoint.hf import safetensors_folder
from megatron_probsft.checkpoint.hf import weights as hf_weights
from megatron_probsft.checkpoint.hf.safetensors_writer import SafetensorsWriter, TensorPlan
from megatron_probsft.checkpoint.hf.trained_turns import fit_for_servers
from megatron_probsft.checkpoint.megatron import run_folder
from megatron_probsft.checkpoint.megatron.saving import Save, Streaming
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.checkpoint.megatron.torch_dist import CONTENT, saved_name
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader, Place
from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import check_is_new, check_space, check_writable, new_folder
from megatron_probsft.runtime.progress import ByteProgress


@dataclass
class Conversion:
    """The result of a conversion."""

    folder: Path
    """The folder that was written: a checkpoint, or a Hugging Face model."""
    nbytes: int
    """Bytes of the tensors in it."""
    warnings: list[str] = field(default_factory=list)


def hf_to_megatron(
    hf_folder: Path, run: Path, *, dtype: torch.dtype | None = None, workers: int = 2
) -> Conversion:
    """Write `run/iter_0000000`, which loads at any TP × PP × EP.

    Needs `distributed.initialize()` with one process.

    Args:
        dtype: the type that tensors are cast to; None keeps each tensor's own.
        workers: number of threads, each with a file of its own.

    Raises:
        UserError: unsupported model; missing, unexpected or misshapen tensors; a truncated file; the target
            exists; too little space for it.
    """
    check_writable(run, "checkpoint folder")
    run_folder.check_unused(run)
    hf = read_hf_model(hf_folder)
    reader = safetensors_folder.TensorReader(hf.folder)
    hf_weights.check_tensors(reader, hf)
    blocks, state = blocks_of(hf, CONTENT, lambda name: dtype or reader.dtype(name))
    blocks = split_vocabulary(blocks, state)
    by_place = {block.place: block for block in blocks}
    plans = [TensorPlan(name, shape, dtype or reader.dtype(name)) for name, shape in hf_weights.hf_shapes(hf)]
    needed = sum(plan.nbytes for plan in plans)
    check_space(run, needed)
    finite = _FiniteCheck()
    run.mkdir(parents=True, exist_ok=True)
    content = {"model": {"0": state}, "iteration": 0, "consumed_samples": 0, "run": {"save_optim": False}}
    with ByteProgress(needed, f"{hf_folder.name} to Megatron") as progress:

        def read(place: Place) -> torch.Tensor:
            tensor = by_place[place].make(reader.read, hf.shape)
            tensor = tensor.to(dtype or tensor.dtype)
            finite.look(by_place[place].names, tensor)
            progress.add(tensor.nbytes)
            return tensor

        save = Save(run, 0, content, SideFiles(hf.folder), streaming=Streaming(read, workers))
        folder = save.finish()
    return Conversion(folder, needed, finite.warnings(hf_folder))


def megatron_to_hf(
    run: Path, hf_folder: Path, *, step: int | None = None, dtype: torch.dtype | None = None, workers: int = 2
) -> Conversion:
    """Write a checkpoint of `run` (the newest, or of `step`) as a Hugging Face folder.

    Needs `distributed.initialize()` with one process. Arguments as for `hf_to_megatron`.

    Raises:
        UserError: no whole checkpoint, no Hugging Face config with it; missing, unexpected or misshapen
            tensors; the target exists; too little space for it.
    """
    check_is_new(hf_folder)
    check_writable(hf_folder, "model folder")
    checkpoint, _ = run_folder.find_checkpoint(run, step)
    hf = read_hf_model(run_folder.hf_folder_of(checkpoint))
    reader = BlockReader(checkpoint)
    blocks = _saved_blocks(checkpoint, hf, reader)
    dtypes = {
        name: dtype or reader.tensors[block.key].properties.dtype for block in blocks for name in block.names
    }
    plans = [TensorPlan(name, shape, dtypes[name]) for name, shape in hf_weights.hf_shapes(hf)]
    needed = sum(plan.nbytes for plan in plans)
    check_space(hf_folder, needed)
    finite = _FiniteCheck()
    with new_folder(hf_folder) as part, ByteProgress(needed, f"{run.name} to HF") as progress:
        writer = SafetensorsWriter(part, plans)
        writer.create()

        def convert(block: Block) -> None:
            tensors = block.split(reader.read(block.place), hf.shape)
            for name, tensor in zip(block.names, tensors, strict=True):
                tensor = tensor.to(dtypes[name])
                finite.look([name], tensor)  # a cast may overflow
                writer.write(name, tensor, block.first_row)
                progress.add(tensor.nbytes)

        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(convert, blocks):
                pass
        safetensors_folder.copy_side_files(hf.folder, part)
        fit_for_servers(part)
        safetensors_folder.set_dtype(part, max(set(dtypes.values()), key=list(dtypes.values()).count))
    warnings = finite.warnings(checkpoint)
    if not any(hf_folder.glob("tokenizer*")):
        warnings.append(f"{checkpoint / 'hf'} has no tokenizer files: {hf_folder} has none either")
    return Conversion(hf_folder, needed, warnings)


def _saved_blocks(checkpoint: Path, hf: HFModel, reader: BlockReader) -> list[Block]:
    """The blocks as the checkpoint holds them; the reader is prepared to read each.

    Raises:
        UserError: damaged metadata; missing, unexpected or misshapen tensors.
    """
    try:
        content = load_content_metadata(str(checkpoint)) or {}
    except Exception as error:  # of what a damaged file may hold, Megatron-Core and torch raise many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"checkpoint {checkpoint} cannot be read: {reason}") from None
    blocks, _ = blocks_of(hf, content, lambda _: torch.float32)
    blocks = [replace(block, key=saved_name(block.key, reader.tensors)) for block in blocks]
    _check_checkpoint(checkpoint, reader, blocks)
    blocks = [part for block in blocks for part in _as_saved(block, reader)]
    reader.plan((block.key, block.offset, block.shape) for block in blocks)
    return blocks


def _as_saved(block: Block, reader: BlockReader) -> list[Block]:
    """The block; the vocabulary in the blocks in which it was saved, so that memory holds one of them."""
    if block.rule.cut != "vocab":
        return [block]
    starts = sorted({chunk.offsets[0] for chunk in reader.tensors[block.key].chunks})
    return block.in_rows([start for start in starts if start < block.shape[0]])


def _check_checkpoint(checkpoint: Path, reader: BlockReader, blocks: Sequence[Block]) -> None:
    """Compare the checkpoint's tensors with those that the config asks for."""
    problems = []
    wanted = {block.key: block for block in blocks}
    for key, block in wanted.items():
        if key not in reader.tensors:
            problems.append(f"missing {key}")
            continue
        size = tuple(reader.tensors[key].size)
        right = size == block.global_shape
        if block.rule.cut == "vocab":  # it may be padded
            right = size[1:] == block.global_shape[1:] and size[0] >= block.global_shape[0]
        if not right:
            problems.append(f"{key} has shape {size}, expected {block.global_shape}")
    model = re.compile(r"(embedding|decoder|output_layer)\.")
    problems += [f"unexpected {key}" for key in reader.tensors if model.match(key) and key not in wanted]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"checkpoint {checkpoint} does not fit its hf/config.json: {'; '.join(problems[:3])}{more}"
        )


class _FiniteCheck:
    """Collects the names of tensors with infinite values or NaN. Threads may look at the same time."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def look(self, names: Sequence[str], tensor: torch.Tensor) -> None:
        low, high = tensor.aminmax()  # NaN, where there is one
        if not (torch.isfinite(low) and torch.isfinite(high)):
            self._names.append(" + ".join(names))

    def warnings(self, where: Path) -> list[str]:
        if not self._names:
            return []
        more = f" and {len(self._names) - 3} more" if len(self._names) > 3 else ""
        return [f"{where}: values that are not finite in {', '.join(sorted(self._names)[:3])}{more}"]
