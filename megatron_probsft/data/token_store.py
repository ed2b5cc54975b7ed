"""The tokenized data set: memory-mapped, made once, found again by the digest of all that went into it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset

from megatron_probsft.data import templates
from megatron_probsft.data.build_folder import build_folder
from megatron_probsft.data.encoding import Encoder, Truncation, encode
from megatron_probsft.data.readers import bars_for_people, reader_of
from megatron_probsft.data.sources import check_files, load_rows
from megatron_probsft.data.tokenizers import tokenizer_identity
from megatron_probsft.runtime.errors import UserError

_FORMAT = 2


class TokenStore:
    """All samples, one after the other, in the order of the files.

    tokens int32 `[total]`; trained bool `[total]`; offsets int64 `[n + 1]`, where each sample starts;
    lengths int32 `[n]`, tokens of each sample; supervised int32 `[n]`, its labels: its trained tokens less
    one at position 0, which nothing predicts; source int32 `[n]`, the index into `sources`, the files it was
    made from. weights float32 `[total]`, of trained tokens, 0 elsewhere, and weight_sums float64 `[n]`, each
    sample's sum over its labels; both None where every trained token weighs 1.

    All read-only; what has one value per token is memory-mapped. digest: names the content.

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


@bars_for_people()
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
    num_workers: int | None = None,
    log: Callable[[str], None] = print,
) -> TokenStore:
    """Open the store of these files from `cache_dir`, or tokenize them once and write it there.

    A sample of n tokens, EOS included, has n − 1 positions (inputs `tokens[:-1]`, labels `tokens[1:]`) and
    is allowed if n − 1 <= seq_length. `truncation` says what becomes of a longer one: "error"; "drop" leaves
    it out; "left" and "right" cut that side to seq_length + 1 tokens, "right" putting EOS last where a
    response is cut in two, and leave out a sample that keeps no label of its response.

    `num_workers` processes tokenize (default: the CPUs, at most 8; 1 for under 2000 rows). Processes may
    race or be killed: a store appears whole, in one rename, and the first one stays; what a killed process
    has left is removed by the next that builds.

    Raises UserError: as `load_rows` and `check_template` do; a longer sample under "error"; a token id not
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
    settings = [template, seq_length, vocab_size, truncation, keys]
    digest = _digest(files, tokenizer, settings)
    folder = Path(cache_dir) / digest
    if folder.exists():
        return TokenStore(folder, files)
    stack = contextlib.ExitStack()
    try:
        building = stack.enter_context(build_folder(Path(cache_dir)))
        (building / "store").mkdir()
    except OSError as error:
        raise UserError(f"{cache_dir}: cannot keep the tokenized data here: {error.strerror}") from None
    started = time.monotonic()
    try:
        rows = load_rows(files, **keys, cache_dir=str(building / "rows"))
        workers = num_workers or (min(8, os.cpu_count() or 1) if len(rows) >= 2000 else 1)
        log(f"tokenizing {len(rows):,} rows of {', '.join(files)} with {workers} process(es)")
        encoder = Encoder(files, tokenizer, template, seq_length, vocab_size, truncation)
        encoded = encode(rows, encoder, workers, building / "encoded.arrow")
        if not len(encoded):
            raise UserError(f"{files[0]}: none of {len(rows)} samples is left at --seq-length {seq_length}")
        total, cut = _write(encoded, building / "store", {"digest": digest, "sources": list(files)})
        seconds = time.monotonic() - started
        log(
            f"tokenized {len(encoded):,} samples, {total:,} tokens in {seconds:.1f} s "
            f"({total / seconds:,.0f} tokens/s); longer than --seq-length {seq_length}: "
            f"{cut:,} cut, {len(rows) - len(encoded):,} left out"
        )
        with contextlib.suppress(OSError):  # not empty: another process was first, with the same store
            (building / "store").rename(folder)
    except UserError:
        raise
    except Exception as error:
        if _disk_is_full(error):
            raise UserError(
                f"{cache_dir}: no space left for the tokenized data: make room, or choose another folder "
                "with --data-cache-path"
            ) from None
        raise
    finally:
        stack.close()
    return TokenStore(folder, files)


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether that is what is behind it: `datasets` wraps what went wrong."""
    seen = set()
    while error is not None and id(error) not in seen:  # they may form a circle
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _write(encoded: Dataset, folder: Path, about: dict[str, Any]) -> tuple[int, int]:
    """Write the store's files, all the way to the disk; returns tokens and samples cut."""
    weighted = encoded.data.column("weights").null_count < len(encoded)
    names = ["tokens", "trained", *(["weights"] if weighted else [])]
    per_sample: dict[str, list[np.ndarray]] = {"lengths": [], "supervised": [], "source": []}
    if weighted:
        per_sample["weight_sums"] = []
    cut = 0
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in names}
        for batch in cast(Iterator[Any], encoded.with_format("arrow").iter(batch_size=1000)):
            tokens, trained, weights = (
                batch.column(name).combine_chunks() for name in ("tokens", "trained", "weights")
            )
            lengths = tokens.value_lengths().to_numpy().astype(np.int64)
            starts = np.cumsum(lengths) - lengths
            flags = trained.flatten().to_numpy(zero_copy_only=False)
            files["tokens"].write(tokens.flatten().to_numpy())
            files["trained"].write(flags)
            per_sample["lengths"].append(lengths)
            per_sample["supervised"].append(_sums_of_labels(flags, starts, np.int32))
            per_sample["source"].append(batch.column("source").to_numpy())
            if weighted:
                values = flags.astype(np.float32)
                values[np.repeat(weights.is_valid().to_numpy(zero_copy_only=False), lengths)] = (
                    weights.flatten().to_numpy()
                )
                files["weights"].write(values)
                per_sample["weight_sums"].append(_sums_of_labels(values, starts, np.float64))
            cut += int(np.count_nonzero(batch.column("cut").to_numpy()))
    arrays = {name: np.concatenate(parts) for name, parts in per_sample.items()}
    arrays["offsets"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(arrays.pop("lengths"))])
    for name, array in arrays.items():
        content = io.BytesIO()  # np.save into a file does not say why it could not be written
        np.save(content, array)
        (folder / f"{name}.npy").write_bytes(content.getbuffer())
    total = int(arrays["offsets"][-1])
    (folder / "about.json").write_text(json.dumps({**about, "tokens": total, "weighted": weighted}, indent=1))
    for file in folder.iterdir():
        with open(file, "rb") as stream:
            os.fsync(stream.fileno())
    return total, cut


def _sums_of_labels(values: np.ndarray, starts: np.ndarray, dtype: type) -> np.ndarray:
    """Each sample's sum, without its first token, which nothing predicts."""
    return (np.add.reduceat(values, starts, dtype=dtype) - values[starts]).astype(dtype)


def _digest(files: Sequence[str], tokenizer: Any, settings: list[Any]) -> str:
    content = [_FORMAT, tokenizer_identity(tokenizer)]
    content += [settings, [reader_of(file).digest() for file in files]]
    return hashlib.blake2b(
        json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16
    ).hexdigest()
