"""The tokenizer of a model folder, by its files alone."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from megatron_probsft.data.sentencepiece_tokenizer import SentencePieceTokenizer
from megatron_probsft.runtime.errors import UserError

_TRANSFORMERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a Hugging Face folder; nothing is fetched.

    `tokenizer.json`, or `vocab.json` with `merges.txt`, is opened by transformers. A `tokenizer.model` alone
    becomes a `SentencePieceTokenizer`: transformers 5 would convert it to the tokenizers library, whose ids
    differ from sentencepiece's in runs of spaces, line ends, "▁" and spelled-out control symbols.

    Raises UserError: none of these files, or one that cannot be read.
    """
    folder = Path(folder)
    model = folder / "tokenizer.model"
    if any(all((folder / name).exists() for name in files) for files in _TRANSFORMERS):
        loader: Any = AutoTokenizer
    elif model.exists():
        loader = SentencePieceTokenizer
        _check_sentencepiece(model)
    else:
        raise UserError(
            f"{folder} has no tokenizer: it needs tokenizer.json or SentencePiece's tokenizer.model"
        )
    try:
        return loader.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {reason}") from None


def tokenizer_identity(tokenizer: Any) -> list[Any]:
    """All that decides which ids a text gets, as JSON can hold it: for a digest."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = tokenizer.identity()
    elif backend is None:
        model = tokenizer.get_vocab()
    else:
        backend.no_truncation()  # as before each call
        backend.no_padding()
        model = backend.to_str()
    return [type(tokenizer).__name__, model, tokenizer.special_tokens_map, tokenizer.chat_template]


def text_libraries() -> str:
    """The versions of what renders and tokenizes, as a resumed run compares its tokens with."""
    names = ("transformers", "tokenizers", "sentencepiece", "jinja2")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def _check_sentencepiece(file: Path) -> None:
    try:
        SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is damaged or no SentencePiece model: {reason}") from None
