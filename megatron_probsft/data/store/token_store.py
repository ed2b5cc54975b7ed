"""A tokenized data set, memory-mapped; it is made once, and found again by a digest of its making."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.data.sources.rows import check_files, read_rows
from megatron_probsft.data.store.encoding import Encoder
from megatron_probsft.data.store.options import StoreOptions
from megatron_probsft.data.store.store_files import write_store
from megatron_probsft.data.store.workers import encode, watched
from megatron_probsft.data.text import templates
from megatron_probsft.data.text.chat_source import prints_the_date
from megatron_probsft.data.tokenizers.load import tokenizer_identity
from megatron_probsft.runtime.build_folder import build_folder
from megatron_probsft.runtime.errors import UserError

_FORMAT = 5


class TokenStore:
    """All samples of a data set, one after the other, in the order of the files.

    tokens int32 `[total]`; trained bool `[total]`; offsets int64 `[n + 1]`, where each sample starts;
    lengths int32 `[n]`, tokens of each sample; supervised int32 `[n]`, its labels: its trained tokens less
    one at position 0, which nothing predicts; source int32 `[n]`, the index into `sources`, the files it was
    made from. weights float32 `[total]`, of trained tokens, 0 elsewhere, and weight_sums float64 `[n]`, each
    sample's sum over its labels; both None where every trained token weighs 1.

    All read-only; what has one value per token is memory-mapped. cut and left_out: how many samples
    truncation shortened, and how many it left out. digest: names what it was made of; content: the tokens and
    weights themselves. notes: what the user should know of how the rows became samples, a line each.

    Raises UserError if the folder is not a whole store.
    """

    def __init__(self, folder: Path, sources: Sequence[str]) -> None:
        try:
            about = json.loads((folder / "about.json").read_text())
            # asarray: a plain view of the map, whose slices cost less than those of np.memmap
            self.tokens = np.asarray(np.memmap(folder / "tokens.bin", np.int32, "r"))
            self.trained = np.asarray(np.memmap(folder / "trained.bin", np.bool_, "r"))
            self.offsets: np.ndarray = np.load(folder / "offsets.npy")
            self.supervised: np.ndarray = np.load(folder / "supervised.npy")
            self.source: np.ndarray = np.load(folder / "source.npy")
            self.weights: np.ndarray | None = None
            self.weight_sums: np.ndarray | None = None
            if about["weighted"]:
                self.weights = np.asarray(np.memmap(folder / "weights.bin", np.float32, "r"))
                self.weight_sums = np.load(folder / "weight_sums.npy")
            per_token = [self.tokens, self.trained, *([] if self.weights is None else [self.weights])]
            whole = all(len(array) == self.offsets[-1] == about["tokens"] for array in per_token)
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: damaged token store, delete it to build it again: {error}") from None
        if not whole:
            raise UserError(f"{folder}: damaged token store, delete it to build it again")
        self.digest: str = about["digest"]
        self.cut: int = about["cut"]
        self.left_out: int = about["left_out"]
        self.content: str = about["content"]
        self.notes: list[str] = [
            f"{note} ({count:,} rows, first {place})" for note, (count, place) in about["notes"].items()
        ]
        self.sources = list(sources)  # the cache may have been made under other names
        self.lengths = np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (tokens int32 `[length]`, trained bool `[length]`), views without a copy."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.trained[span]

    def weights_of(self, index: int) -> np.ndarray:
        """Return a sample's weights, float32 `[length]`, a view; only for stores with weights."""
        assert self.weights is not None
        return self.weights[self.offsets[index] : self.offsets[index + 1]]

    def weight_scale(self, indices: np.ndarray) -> float:
        """Return N ÷ Σ w over the N labels of these samples; 1 without weights.

        Labels that weigh scale · w have the sum N: their weighted sum ÷ N is the weighted mean.
        """
        if self.weight_sums is None:
            return 1.0
        return float(self.supervised[indices].sum() / self.weight_sums[indices].sum())


def build_token_store(
    files: Sequence[str],
    tokenizer: Any,
    options: StoreOptions,
    *,
    cache_dir: str | Path,
    num_workers: int | None = None,
    log: Callable[[str], None] = print,
) -> TokenStore:
    """Open the store of these files from `cache_dir`, or tokenize them once and write it there.

    A sample of n tokens, EOS included, has n − 1 positions (inputs `tokens[:-1]`, labels `tokens[1:]`).

    `num_workers` processes tokenize (default: the CPUs, at most 8; 1 for under 2000 rows). Processes may
    race or be killed: a store appears whole, in one rename, and the first one stays; what a killed process
    has left is removed by the next that builds.

    Raises UserError: as `read_rows` and `check_template` do; a longer sample under "error"; a token id not
    in [0, vocab_size); a sample without any label; nothing left; a full disk.
    """
    check_files(files)
    templates.check_template(tokenizer, options.template)
    if options.truncation not in ("error", "drop", "left", "right"):
        raise UserError(f"--truncation {options.truncation} is unknown: use error, drop, left or right")
    if options.template != "chat" or not prints_the_date(tokenizer):
        options = dataclasses.replace(options, template_date=None)
    folder = Path(cache_dir) / _digest(files, tokenizer, options)
    if folder.exists():
        store = TokenStore(folder, files)
        done = f"{len(store):,} samples, {len(store.tokens):,} tokens are in {folder} from before"
    else:
        started = time.monotonic()
        _write(files, tokenizer, options, folder, num_workers, log)
        seconds = time.monotonic() - started
        store = TokenStore(folder, files)
        done = (
            f"tokenized {len(store):,} samples, {len(store.tokens):,} tokens in {seconds:.1f} s "
            f"({len(store.tokens) / seconds:,.0f} tokens/s)"
        )
    log(
        f"{done}; longer than --seq-length {options.seq_length}: {store.cut:,} cut, "
        f"{store.left_out:,} left out"
    )
    for note in store.notes:
        log(f"note: {note}")
    return store


def _write(
    files: Sequence[str],
    tokenizer: Any,
    options: StoreOptions,
    folder: Path,
    num_workers: int | None,
    log: Callable[[str], None],
) -> None:
    """Tokenize the files, and let the store appear at `folder` when it is whole."""
    cache = folder.parent
    with contextlib.ExitStack() as stack:
        try:
            building = stack.enter_context(build_folder(cache)) / "store"
            building.mkdir()
        except OSError as error:
            raise UserError(f"{cache}: cannot keep the tokenized data here: {error.strerror}") from None
        try:
            rows = read_rows(files, **options.keys(), log=log)
            count = sum(reader_of(file).count() for file in files)
            workers = num_workers or (min(8, os.cpu_count() or 1) if count >= 2000 else 1)
            log(f"tokenizing {count:,} rows of {', '.join(files)} with {workers} process(es)")
            encoder = Encoder(files, tokenizer, options)
            about = {"digest": folder.name, "sources": list(files)}
            with contextlib.closing(watched(encode(rows, encoder, workers), count, log)) as batches:
                written = write_store(batches, building, about)
            if not written.samples:
                raise UserError(
                    f"{files[0]}: none of {written.left_out} samples is left at "
                    f"--seq-length {options.seq_length}"
                )
            with contextlib.suppress(OSError):  # not empty: another process was first, with the same store
                building.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(
                    f"{cache}: no space left for the tokenized data: make room, or choose another folder "
                    "with --data-cache-path"
                ) from None
            raise


def _digest(files: Sequence[str], tokenizer: Any, options: StoreOptions) -> str:
    """Name all that a store is made of. Stores of before are found again as long as this stays as it is."""
    text = templates.NAMED_TEMPLATES.get(options.template)  # the same name may mean another text one day
    settings = [options.template, text, options.seq_length, options.vocab_size, options.truncation]
    settings += [options.keys(), options.template_date]
    content = [_FORMAT, tokenizer_identity(tokenizer), settings, [reader_of(file).digest() for file in files]]
    return hashlib.blake2b(
        json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16
    ).hexdigest()
