"""A token store's files are written as the samples come."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_probsft.data.store.encoding import Encoded


@dataclass
class Written:
    """Counts of what was written, and a digest of it."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    cut: int = 0
    left_out: int = 0
    weighted: bool = False
    notes: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    content: str = ""  # digest of tokens and weights


def write_store(batches: Iterable[Encoded], folder: Path, about: dict[str, Any]) -> Written:
    """Write what `TokenStore` reads into an empty folder, all the way to the disk. Raises OSError."""
    written = Written()
    content = hashlib.blake2b(digest_size=16)
    lengths, source, supervised, weight_sums = [], [], [], []
    with contextlib.ExitStack() as stack:
        tokens, trained, weights = (
            stack.enter_context(open(folder / f"{name}.bin", "wb"))
            for name in ("tokens", "trained", "weights")
        )
        for batch in batches:
            flags = batch.weights > 0
            tokens.write(batch.tokens)
            trained.write(flags)
            weights.write(batch.weights)
            content.update(batch.tokens)
            content.update(batch.weights)
            lengths.append(batch.lengths)
            source.append(batch.source)
            supervised.append(batch.sums_of_labels(flags))
            weight_sums.append(batch.sums_of_labels(batch.weights))
            written.rows += batch.rows
            written.samples += len(batch.lengths)
            written.tokens += len(batch.tokens)
            written.cut += batch.cut
            written.left_out += batch.left_out
            written.weighted |= batch.weighted
            for note, (count, place) in batch.notes.items():
                before, first = written.notes.get(note, (0, place))
                written.notes[note] = (before + count, first)
    content.update(np.concatenate(lengths))
    written.content = content.hexdigest()
    arrays = {
        "offsets": np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths])),
        "source": np.concatenate(source),
        "supervised": np.concatenate(supervised).astype(np.int32),
        "weight_sums": np.concatenate(weight_sums),
    }
    if not written.weighted:
        (folder / "weights.bin").unlink()
        del arrays["weight_sums"]
    for name, array in arrays.items():
        content = io.BytesIO()  # np.save into a file does not say why it could not be written
        np.save(content, array)
        (folder / f"{name}.npy").write_bytes(content.getbuffer())
    counts = dataclasses.asdict(written)
    del counts["samples"]
    (folder / "about.json").write_text(json.dumps({**about, **counts}, indent=1))
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    return written
