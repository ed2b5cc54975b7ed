"""The tokenized data set: memory-mapped, made once, found again by the digest of all that went into it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import datasets
import numpy as np
from datasets import Dataset, Features, List, Value

from megatron_probsft.data import templates
from megatron_probsft.data.sources import check_files, content_digest, load_rows
from megatron_probsft.runtime.errors import UserError

Truncation = Literal["error", "drop", "left", "right"]
_FORMAT = 1
_ENCODED = Features({"tokens": List(Value("int32")), "trained": List(Value("bool")), "cut": Value("bool")})


class TokenStore:
    """All samples, one after the other, in the order of the files.

    tokens int32 `[total]`; trained bool `[total]`; offsets int64 `[n + 1]`, where each sample starts;
    lengths int32 `[n]`, tokens of each sample; supervised int32 `[n]`, its labels: its trained tokens less
    one at position 0, which nothing predicts. All read-only; the first two are memory-mapped.
    digest: names the content. sources: the files it was made from.

    Raises UserError if the folder is not a whole store.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / "about.json").read_text())
            # asarray: a plain view of the map, whose slices cost less than those of np.memmap
            self.tokens = np.asarray(np.memmap(folder / "tokens.bin", np.int32, "r"))
            self.trained = np.asarray(np.memmap(folder / "trained.bin", np.bool_, "r"))
            self.offsets: np.ndarray = np.load(folder / "offsets.npy")
            self.supervised: np.ndarray = np.load(folder / "supervised.npy")
            whole = len(self.tokens) == len(self.trained) == self.offsets[-1] == about["tokens"]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: damaged token store, delete it to build it again: {error}") from None
        if not whole:
            raise UserError(f"{folder}: damaged token store, delete it to build it again")
        self.digest: str = about["digest"]
        self.sources: list[str] = about["sources"]
        self.lengths = np.diff(self.offsets).astype(np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32 `[length]`, trained bool `[length]`), views without a copy."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.tokens[span], self.trained[span]


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
    num_workers: int | None = None,
    log: Callable[[str], None] = print,
) -> TokenStore:
    """Open the store of these files from `cache_dir`, or tokenize them once and write it there.

    A sample of n tokens, EOS included, has n − 1 positions (inputs `tokens[:-1]`, labels `tokens[1:]`) and
    is allowed if n − 1 <= seq_length. `truncation` says what becomes of a longer one: "error"; "drop" leaves
    it out; "left" and "right" cut that side to seq_length + 1 tokens, "right" putting EOS last where a
    response is cut in two, and leave out a sample that keeps no label of its response.

    `num_workers` processes tokenize (default: the CPUs, at most 8; 1 for under 2000 rows). Processes may
    race or be killed: a store appears whole, in one rename, and the first one stays.

    Raises UserError: as `load_rows` and `check_template` do; a longer sample under "error"; a token id not
    in [0, vocab_size); a sample without any label; nothing left.
    """
    keys = {"prompt_key": prompt_key, "response_key": response_key, "messages_key": messages_key}
    check_files(files)
    templates.check_template(tokenizer, template)
    if truncation not in ("error", "drop", "left", "right"):
        raise UserError(f"--truncation {truncation} is unknown: use error, drop, left or right")
    settings = [template, seq_length, vocab_size, truncation, keys]
    digest = _digest(files, tokenizer, settings)
    folder = Path(cache_dir) / digest
    if folder.exists():
        return TokenStore(folder)
    building = Path(cache_dir) / f".building-{uuid.uuid4().hex}"
    try:
        (building / "store").mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{cache_dir}: cannot keep the tokenized data here: {error.strerror}") from None
    started = time.monotonic()
    try:
        with _progress_bars():
            rows = load_rows(files, **keys, cache_dir=str(building / "rows"))
            workers = num_workers or (min(8, os.cpu_count() or 1) if len(rows) >= 2000 else 1)
            log(f"tokenizing {len(rows):,} rows of {', '.join(files)} with {workers} process(es)")
            encoder = _Encoder(list(files), tokenizer, template, seq_length, vocab_size, truncation)
            encoded = _encode(rows, encoder, workers, building / "encoded.arrow")
        total, cut = _write(encoded, building / "store", {"digest": digest, "sources": list(files)})
        if not len(encoded):
            raise UserError(f"{files[0]}: none of {len(rows)} samples is left at --seq-length {seq_length}")
        seconds = time.monotonic() - started
        log(
            f"tokenized {len(encoded):,} samples, {total:,} tokens in {seconds:.1f} s "
            f"({total / seconds:,.0f} tokens/s); longer than --seq-length {seq_length}: "
            f"{cut:,} cut, {len(rows) - len(encoded):,} left out"
        )
        with contextlib.suppress(OSError):  # not empty: another process was first, with the same store
            (building / "store").rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return TokenStore(folder)


class _Encoder:
    """A batch of rows to a batch of encoded samples; sent to the worker processes."""

    def __init__(
        self, files: list[str], tokenizer: Any, template: str, limit: int, vocab: int, truncation: Truncation
    ) -> None:
        self._files, self._tokenizer, self._template = files, tokenizer, template
        self._limit, self._vocab, self._truncation = limit + 1, vocab, truncation

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        where = [f"{self._files[s]}:{r}" for s, r in zip(batch["source"], batch["row"], strict=True)]
        result: dict[str, list[Any]] = {"tokens": [], "trained": [], "cut": []}
        for place, (tokens, trained) in zip(where, self._tokenize(batch, where), strict=True):
            if not 0 <= min(tokens) <= max(tokens) < self._vocab:
                wrong = next(t for t in tokens if not 0 <= t < self._vocab)
                raise UserError(
                    f"{place}: vocabulary label out of range: token id {wrong} with a vocabulary of "
                    f"{self._vocab}: the tokenizer does not belong to the model"
                )
            if not any(trained[1:]):
                raise UserError(
                    f"{place}: the sample has no label: nothing in it can be predicted and trained"
                )
            kept = self._fit(tokens, trained, place)
            if kept is not None:
                result["tokens"].append(kept[0])
                result["trained"].append(kept[1])
                result["cut"].append(len(kept[0]) < len(tokens))
        return result

    def _tokenize(self, batch: dict[str, list[Any]], where: list[str]) -> list[tuple[list[int], list[bool]]]:
        if "prompt" in batch:
            return templates.encode_pairs(self._tokenizer, batch["prompt"], batch["response"], self._template)
        templates.check_template(self._tokenizer, self._template, conversations=True)
        segments = []
        for place, messages in zip(where, batch["messages"], strict=True):
            try:
                segments.append(templates.split_messages(self._tokenizer, messages))
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
        return templates.encode_segments(self._tokenizer, segments)

    def _fit(self, tokens: list[int], trained: list[bool], place: str) -> tuple[list[int], list[bool]] | None:
        limit = self._limit
        if len(tokens) <= limit:
            return tokens, trained
        if self._truncation == "error":
            raise UserError(
                f"{place}: the sample has {len(tokens) - 1} positions, more than --seq-length {limit - 1}: "
                "raise it, or choose --truncation drop, left or right"
            )
        if self._truncation == "left":
            tokens, trained = tokens[-limit:], trained[-limit:]
            return (tokens, trained) if any(trained[1:]) else None
        if self._truncation == "right" and any(trained[1 : limit - 1]):
            last = self._tokenizer.eos_token_id if trained[limit - 1] else tokens[limit - 1]
            return [*tokens[: limit - 1], last], trained[:limit]
        return None


def _encode(rows: Dataset, encoder: _Encoder, workers: int, file: Path) -> Dataset:
    with _no_tokenizer_threads() if workers > 1 else contextlib.nullcontext():
        return rows.map(
            encoder,
            batched=True,
            batch_size=500,
            remove_columns=rows.column_names,
            features=_ENCODED,
            num_proc=workers if workers > 1 else None,
            cache_file_name=str(file),
            load_from_cache_file=False,
            new_fingerprint=uuid.uuid4().hex,  # instead of hashing the tokenizer
            desc="tokenizing",
        )


@contextlib.contextmanager
def _no_tokenizer_threads() -> Iterator[None]:
    """For processes about to be forked, which already share the CPUs."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _write(encoded: Dataset, folder: Path, about: dict[str, Any]) -> tuple[int, int]:
    """Write the store's files, all the way to the disk; returns tokens and samples cut."""
    lengths, supervised, cut = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], 0
    with open(folder / "tokens.bin", "wb") as tokens_file, open(folder / "trained.bin", "wb") as trained_file:
        for batch in cast(Iterator[Any], encoded.with_format("arrow").iter(batch_size=1000)):
            tokens, trained = (batch.column(name).combine_chunks() for name in ("tokens", "trained"))
            ends = np.cumsum(tokens.value_lengths().to_numpy())
            flags = trained.flatten().to_numpy(zero_copy_only=False)
            tokens_file.write(tokens.flatten().to_numpy())
            trained_file.write(flags)
            starts = np.concatenate([[0], ends[:-1]])
            lengths.append(ends - starts)
            supervised.append(
                (np.add.reduceat(flags, starts, dtype=np.int32) - flags[starts]).astype(np.int32)
            )
            cut += int(np.count_nonzero(batch.column("cut").to_numpy()))
    offsets = np.cumsum(np.concatenate(lengths))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "supervised.npy", np.concatenate(supervised))
    (folder / "about.json").write_text(json.dumps({**about, "tokens": int(offsets[-1])}, indent=1))
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    return int(offsets[-1]), cut


def _digest(files: Sequence[str], tokenizer: Any, settings: list[Any]) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for state in ("truncation", "padding"):  # set by each call
        model.pop(state, None)
    content = [
        _FORMAT,
        type(tokenizer).__name__,
        model,
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
    ]
    content += [settings, [content_digest(file) for file in files]]
    return hashlib.blake2b(
        json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16
    ).hexdigest()


@contextlib.contextmanager
def _progress_bars() -> Iterator[None]:
    """The bars of `datasets`, only where somebody sees them."""
    quiet = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            datasets.enable_progress_bars()
