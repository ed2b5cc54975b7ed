"""A run folder's checkpoints: their names, the pointer to the newest, checks for damage, removal of old ones.

A run folder holds `iter_0000100/` per checkpoint and `latest_checkpointed_iteration.txt`. Each checkpoint
holds model, optimizer, schedule, random generators and data position as Megatron-Core saves them, and
beside them `hf/` (config.json and tokenizer files, all that an export needs), `train_config.yaml` and
`manifest.json` (file sizes, so that a truncated file is found before work starts).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.folders import to_disk
from megatron_probsft.runtime.read_files import read_json_object, read_text

_LATEST = "latest_checkpointed_iteration.txt"
_MANIFEST = "manifest.json"


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """The folder of a step's checkpoint, whether or not it is there."""
    return run_folder / f"iter_{step:07d}"


def part_folder(run_folder: Path, step: int) -> Path:
    """The folder in which a checkpoint is written before it gets its name."""
    return run_folder / f"iter_{step:07d}.part"


def find_checkpoint(run_folder: Path, step: int | None = None) -> tuple[Path, int]:
    """The checkpoint of a step, or the newest one, and its step; it is checked to be whole.

    Raises:
        UserError: no such folder, no checkpoint in it, or a file of it missing or truncated; then the
            message names the newest older one that is whole.
    """
    if not run_folder.is_dir():
        raise UserError(f"checkpoint folder {run_folder} does not exist")
    steps = saved_steps(run_folder)
    if step is not None and step not in steps:
        there = f"it has those of steps {', '.join(map(str, steps))}" if steps else "it has none"
        raise UserError(f"{run_folder} has no checkpoint of step {step}: {there}")
    chosen = newest_step(run_folder) if step is None else step
    if chosen is None:
        raise UserError(f"{run_folder} holds no checkpoint")
    folder = checkpoint_folder(run_folder, chosen)
    try:
        check_whole(folder)
    except UserError as error:
        older = next((s for s in reversed(steps) if s < chosen and _is_whole(run_folder, s)), None)
        advice = "no whole one is before it" if older is None else f"--ckpt-step {older} takes the one before"
        raise UserError(f"{error}; {advice}") from None
    return folder, chosen


def check_unused(run_folder: Path) -> None:
    """Raise a UserError if the folder holds more than the leftovers of a killed run."""
    if run_folder.exists() and set(run_folder.iterdir()) - set(leftovers(run_folder)):
        raise UserError(f"{run_folder} exists: choose another folder, or remove it")


def newest_step(run_folder: Path) -> int | None:
    """The step that the pointer names; without a pointer that of the newest whole checkpoint, or None.

    Raises:
        UserError: the pointer does not hold a number.
    """
    pointer = run_folder / _LATEST
    if not pointer.is_file():
        return max((step for step in saved_steps(run_folder) if _is_whole(run_folder, step)), default=None)
    text = read_text(pointer).strip()
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{pointer} should hold a step number, it says {text[:20]!r}")
    return int(text)


def saved_steps(run_folder: Path) -> list[int]:
    """The steps of the checkpoints that are there, whole or not, in ascending order."""
    names = (folder.name.removeprefix("iter_") for folder in run_folder.glob("iter_*"))
    return sorted(int(name) for name in names if name.isdecimal())


def check_whole(folder: Path) -> None:
    """Compare the checkpoint's files with its manifest. Megatron's own checkpoints have none to compare with.

    Raises:
        UserError: the folder or one of its files is missing or has another size.
    """
    if not (folder / "metadata.json").is_file():
        raise UserError(f"{folder} is not a complete checkpoint: it has no metadata.json")
    read_json_object(folder / "metadata.json")
    manifest = folder / _MANIFEST
    if not manifest.is_file():
        return
    for name, size in read_json_object(manifest).items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"checkpoint {folder} is incomplete: {name} is missing")
        if file.stat().st_size != size:
            raise UserError(
                f"checkpoint {folder} is damaged: {name} has {file.stat().st_size} bytes, expected {size}"
            )


def hf_folder_of(checkpoint: Path) -> Path:
    """The Hugging Face config and tokenizer that travel with a checkpoint.

    Raises:
        UserError: there is none (a checkpoint that plain Megatron-Core wrote).
    """
    folder = checkpoint / "hf"
    if not (folder / "config.json").is_file():
        raise UserError(f"{checkpoint} carries no Hugging Face config: put config.json in {folder}")
    return folder


def publish_checkpoint(run_folder: Path, step: int) -> Path:
    """Give a part that is wholly written its name, and move the pointer to it; both are on the disk then.

    The checkpoint before it stays the newest until the last rename. Returns the checkpoint's folder.
    """
    part, target = part_folder(run_folder, step), checkpoint_folder(run_folder, step)
    files = [path for path in part.rglob("*") if path.is_file()]
    sizes = {str(file.relative_to(part)): file.stat().st_size for file in sorted(files)}
    (part / _MANIFEST).write_text(json.dumps(sizes, indent=1))
    for path in [*part.rglob("*"), part]:
        to_disk(path)
    _remove(target)
    part.rename(target)
    pointer = run_folder / (_LATEST + ".part")
    pointer.write_text(str(step))
    to_disk(pointer)
    pointer.rename(run_folder / _LATEST)
    to_disk(run_folder)
    return target


def prune(run_folder: Path, most_recent_k: int | None, retain_interval: int | None) -> list[int]:
    """Remove all but the newest k checkpoints and those whose step the interval divides. Returns their steps.

    The newest always stays. If both are None, all stay.
    """
    newest = newest_step(run_folder)
    if newest is None or (most_recent_k is None and retain_interval is None):
        return []
    older = [step for step in saved_steps(run_folder) if step < newest]
    recent = older[len(older) - (most_recent_k or 1) + 1 :]
    dropped = [
        step for step in older if step not in recent and (retain_interval is None or step % retain_interval)
    ]
    for step in dropped:
        _remove(checkpoint_folder(run_folder, step))
    return dropped


def leftovers(run_folder: Path) -> list[Path]:
    """The folders that a killed run had not finished to write, or to remove."""
    return [folder for pattern in ("iter_*.part", "iter_*.removed") for folder in run_folder.glob(pattern)]


def remove_leftovers(run_folder: Path) -> None:
    """Remove the folders that a killed run left unfinished."""
    for folder in leftovers(run_folder):
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    """Remove a folder. It is renamed first: a kill leaves no half of a checkpoint under its name."""
    if folder.exists():
        removed = folder.with_name(folder.name + ".removed")
        folder.rename(removed)
        shutil.rmtree(removed)


def _is_whole(run_folder: Path, step: int) -> bool:
    try:
        check_whole(checkpoint_folder(run_folder, step))
    except UserError:
        return False
    return True
