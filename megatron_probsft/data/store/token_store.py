"""The tokenized data set: memory-mapped, made once, found again by the digest of all that went into it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_probsft.data.sources.readers import reader_of
from megatron_probsft.data.sources.rows import check_files, read_rows
from megatron_probsft.data.store.encoding import Encoded, Encoder, Truncation, encode
from megatron_probsft.data.store.store_files import write_store
from megatron_probsft.data.text import templates
from megatron_probsft.data.text.chat_source import prints_the_date
from megatron_probsft.data.tokenizers.load import tokenizer_identity
from megatron_probsft.runtime.build_folder import build_folder
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.progress import tqdm

_FORMAT = 5


class TokenStore:
    """All samples, one after the other, in the order of the files.

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
        """(tokens int32 `[length]`, trained bool `[length]`), views without a copy."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.trained[span]

    def weights_of(self, index: int) -> np.ndarray:
        """float32 `[length]`, a view; only where the store has weights."""
        assert self.weights is not None
        return self.weights[self.offsets[index] : self.offsets[index + 1]]

    def weight_scale(self, indices: np.ndarray) -> float:
        """N ÷ Σ w over the N labels of these samples; 1 without weights.

        Labels that weigh scale · w have the sum N: their weighted sum ÷ N is the weighted mean.
        """
        if self.weight_sums is None:
            return 1.0
        return float(self.supervised[indices].sum() / self.weight_sums[indices].sum())


def build_token_store(
    files: Sequence[str],
    tokenizer: Any,
    *,
    template: str,
    seq_length: int,
    vocab_size: int,
    truncation: Truncation = "error",
    cache_dir: str | Path,
    prompt_key: str = "prompt",
    response_key: str = "response",
    messages_key: str = "messages",
    weight_key: str | None = None,
    template_date: str | None = None,
    num_workers: int | None = None,
    log: Callable[[str], None] = print,
) -> TokenStore:
    """Open the store of these files from `cache_dir`, or tokenize them once and write it there.

    A sample of n tokens, EOS included, has n − 1 positions (inputs `tokens[:-1]`, labels `tokens[1:]`) and
    is allowed if n − 1 <= seq_length. `truncation` says what becomes of a longer one: "error"; "drop" leaves
    it out; "left" and "right" cut that side to seq_length + 1 tokens, "right" putting EOS last where a
    response is cut in two, and leave out a sample that keeps no label of its response.

    template_date: for `ChatTemplate`; of consequence only where the template prints the date.

    `num_workers` processes tokenize (default: the CPUs, at most 8; 1 for under 2000 rows). Processes may
    race or be killed: a store appears whole, in one rename, and the first one stays; what a killed process
    has left is removed by the next that builds.

    Raises UserError: as `read_rows` and `check_template` do; a longer sample under "error"; a token id not
    in [0, vocab_size); a sample without any label; nothing left; a full disk.
    """
    keys = {
        "prompt_key": prompt_key, "response_key": response_key, "messages_key": messages_key,
        "weight_key": weight_key,
    }  # fmt: skip
    check_files(files)
    templates.check_template(tokenizer, template)
    if truncation not in ("error", "drop", "left", "right"):
        raise UserError(f"--truncation {truncation} is unknown: use error, drop, left or right")
    text = templates.NAMED_TEMPLATES.get(template)  # the same name may stand for another text one day
    date = template_date if template == "chat" and prints_the_date(tokenizer) else None
    settings = [template, text, seq_length, vocab_size, truncation, keys, date]
    digest = _digest(files, tokenizer, settings)
    folder = Path(cache_dir) / digest
    if folder.exists():
        store = TokenStore(folder, files)
        log(
            f"{len(store):,} samples, {len(store.tokens):,} tokens are in {folder} from before; "
            f"{_truncations(store, seq_length)}"
        )
        _say_notes(store, log)
        return store
    stack = contextlib.ExitStack()
    try:
        building = stack.enter_context(build_folder(Path(cache_dir)))
        (building / "store").mkdir()
    except OSError as error:
        raise UserError(f"{cache_dir}: cannot keep the tokenized data here: {error.strerror}") from None
    started = time.monotonic()
    try:
        rows = read_rows(files, **keys, log=log)
        count = sum(reader_of(file).count() for file in files)
        workers = num_workers or (min(8, os.cpu_count() or 1) if count >= 2000 else 1)
        log(f"tokenizing {count:,} rows of {', '.join(files)} with {workers} process(es)")
        encoder = Encoder(files, tokenizer, template, seq_length, vocab_size, truncation, date)
        about = {"digest": digest, "sources": list(files)}
        with contextlib.closing(_watched(encode(rows, encoder, workers), count, log)) as batches:
            written = write_store(batches, building / "store", about)
        if not written.samples:
            raise UserError(
                f"{files[0]}: none of {written.left_out} samples is left at --seq-length {seq_length}"
            )
        seconds = time.monotonic() - started
        with contextlib.suppress(OSError):  # not empty: another process was first, with the same store
            (building / "store").rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{cache_dir}: no space left for the tokenized data: make room, or choose another folder "
                "with --data-cache-path"
            ) from None
        raise
    finally:
        stack.close()
    store = TokenStore(folder, files)
    log(
        f"tokenized {len(store):,} samples, {len(store.tokens):,} tokens in {seconds:.1f} s "
        f"({len(store.tokens) / seconds:,.0f} tokens/s); {_truncations(store, seq_length)}"
    )
    _say_notes(store, log)
    return store


def _say_notes(store: TokenStore, log: Callable[[str], None]) -> None:
    for note in store.notes:
        log(f"note: {note}")


def _truncations(store: TokenStore, seq_length: int) -> str:
    return f"longer than --seq-length {seq_length}: {store.cut:,} cut, {store.left_out:,} left out"


def _watched(
    batches: Iterator[Encoded], total: int, log: Callable[[str], None]
) -> Generator[Encoded, None, None]:
    """Pass them on; a bar with the time left on a terminal, else a line about every 10 s."""
    started = said = time.monotonic()
    done = tokens = 0
    with tqdm(total=total, desc="tokenizing", unit=" rows", disable=None, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.rows)
            done, tokens, now = done + batch.rows, tokens + len(batch.tokens), time.monotonic()
            if bar.disable and now - said > 10:
                said, left = now, (now - started) / done * (total - done)
                log(
                    f"tokenizing: {done:,} of {total:,} rows | {tokens / (now - started):,.0f} tokens/s | "
                    f"{left:.0f} s left"
                )


def _digest(files: Sequence[str], tokenizer: Any, settings: list[Any]) -> str:
    content = [_FORMAT, tokenizer_identity(tokenizer)]
    content += [settings, [reader_of(file).digest() for file in files]]
    return hashlib.blake2b(
        json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16
    ).hexdigest()
