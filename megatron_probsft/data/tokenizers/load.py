"""The tokenizer of a model folder: its files decide the ids, whatever class they name.

transformers 5 has classes (LlamaTokenizer, for one) that open a tokenizer.json and then put their own
normalizer, pre-tokenizer and decoder in place of the file's. DeepSeek-LLM's files name such a class, and lose
every space to it. So no class is asked: a tokenizer.json is the tokenizers library's to read, a
tokenizer.model sentencepiece's. What only tokenizer_config.json knows is taken from there: the names of
special tokens, tokens that the file lacks, and chat templates.

Special tokens around a text (BOS, EOS) are those of tokenizer.json's post-processor, as in transformers 5 and
vLLM, whatever `add_bos_token` says; for the other forms, which have none, `add_bos_token` and `add_eos_token`
decide.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, pre_tokenizers
from transformers import GPT2Tokenizer, Qwen2Tokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from megatron_probsft.data.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_probsft.data.tokenizers.trial import (
    TrialReading,
    added_tokens,
    check_readings,
    readings,
    readings_of,
    trial_texts,
)
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.read_files import read_json_object

# vocab.json and merges.txt do not say how a text is split first: these classes are the definition of that.
_OF_VOCAB_AND_MERGES = {"GPT2Tokenizer": (GPT2Tokenizer, "gpt2"), "Qwen2Tokenizer": (Qwen2Tokenizer, "qwen")}
_OTHER_FORMS = ("*.tiktoken", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt", "tokenizer.model.*")
_ROLES = ("bos", "eos", "pad")


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer of a Hugging Face folder; nothing is fetched, and no code of the folder runs.

    tokenizer.json goes first; then vocab.json with merges.txt, of GPT-2's and Qwen2's classes only; then
    tokenizer.model, as a `SentencePieceTokenizer`. Ids and texts of a trial are compared with those of the
    file itself.

    Raises UserError: none of these files, one that cannot be read, other tokens in tokenizer_config.json
    than in the file, or a trial text that gets other ids or comes back as another text than by the file.
    """
    folder = Path(folder)
    config = read_json(folder / "tokenizer_config.json")
    try:
        if (folder / "tokenizer.json").exists():
            tokenizer, expected = _of_tokenizer_json(folder)
        elif (form := _vocab_and_merges(folder, config)) is not None:
            tokenizer = form.from_pretrained(folder, local_files_only=True)
            expected = _of_bytes(tokenizer, folder)
        elif (folder / "tokenizer.model").exists():
            model = _sentencepiece(folder / "tokenizer.model")
            tokenizer = SentencePieceTokenizer.from_pretrained(folder, local_files_only=True)
            texts = trial_texts(added_tokens(tokenizer))
            expected = readings(texts, model.encode, model.decode)
        else:
            raise UserError(_nothing_to_read(folder, config))
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder}: the tokenizer cannot be loaded: {reason}") from None
    _name_special_tokens(tokenizer, folder, config)
    _check_ids_of_config(tokenizer, folder, config)
    check_readings(tokenizer, expected, f"{folder}, of class {config.get('tokenizer_class')}: ")
    return tokenizer


def tokenizer_identity(tokenizer: Any) -> list[Any]:
    """Return all that decides which ids a text gets, as JSON can hold it, for a digest.

    The ids of a trial are part of it: a version of a library that makes other tokens of the same files
    makes another identity.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if isinstance(tokenizer, SentencePieceTokenizer):
        model = tokenizer.identity()
    elif backend is None:
        model = tokenizer.get_vocab()
    else:
        backend.no_truncation()  # as before each call
        backend.no_padding()
        model = backend.to_str()
    trial = [(one.ids, one.with_special) for one in readings_of(tokenizer, trial_texts())]
    digest = hashlib.blake2b(json.dumps(trial).encode(), digest_size=16).hexdigest()
    names = [tokenizer.special_tokens_map, tokenizer.split_special_tokens, tokenizer.chat_template]
    return [type(tokenizer).__name__, model, *names, digest]


def text_libraries() -> str:
    """Return the versions of what renders and tokenizes, which a resumed run compares with its own."""
    names = ("transformers", "tokenizers", "sentencepiece", "jinja2")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


class _OfFile(TokenizersBackend):
    """A tokenizer that reads tokenizer.json with the tokenizers library, once and unchanged.

    transformers would copy it and, for some models, mend it.
    """

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        return kwargs

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("fix_mistral_regex", None)  # puts another split in the place of the file's
        file: Any = Tokenizer.from_file(kwargs.pop("tokenizer_file"))
        file.no_truncation()
        file.no_padding()
        file.encode_special_tokens = bool(kwargs.get("split_special_tokens"))
        self.own = [token.content for token in file.get_added_tokens_decoder().values()]
        self.by_file = readings(
            [*trial_texts(), "".join(f"{token} a" for token in self.own[:8])],
            lambda text: file.encode(text, add_special_tokens=False).ids,
            lambda ids: file.decode(ids, skip_special_tokens=False),
            lambda text: file.encode(text).ids,
        )
        self._tokenizer = file
        super().__init__(**kwargs)


def _of_tokenizer_json(folder: Path) -> tuple[Any, list[TrialReading]]:
    """Return transformers' plain class around the file's own tokenizer, and the file's own readings."""
    tokenizer: Any = _OfFile.from_pretrained(folder, local_files_only=True)
    own, by_file = tokenizer.own, tokenizer.by_file
    del tokenizer.own, tokenizer.by_file
    tokenizer.__class__ = TokenizersBackend  # which every program can save and open
    of_config = set(added_tokens(tokenizer)).difference(own)
    return tokenizer, [one for one in by_file if not any(token in one.text for token in of_config)]


def _vocab_and_merges(folder: Path, config: dict[str, Any]) -> Any:
    """Return the class that vocab.json and merges.txt are written for, or None."""
    if not all((folder / name).exists() for name in ("vocab.json", "merges.txt")):
        return None
    family = str(read_json(folder / "config.json").get("model_type", ""))
    named = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    by_family = [name for name, (_, prefix) in _OF_VOCAB_AND_MERGES.items() if family.startswith(prefix)]
    names = by_family if family else list(_OF_VOCAB_AND_MERGES)
    wanted = [name for name in names if name == named] if named else by_family
    return _OF_VOCAB_AND_MERGES[wanted[0]][0] if wanted else None


def _of_bytes(tokenizer: Any, folder: Path) -> list[TrialReading]:
    """Return the readings expected of byte-level tokens, which hold every text as it was written."""
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - tokenizer.get_vocab().keys()
    if missing:
        raise UserError(f"{folder}/vocab.json is no byte-level vocabulary: it lacks {min(missing)!r}")
    normalize = tokenizer.backend_tokenizer.normalizer
    return [
        replace(one, decoded=normalize.normalize_str(one.text) if normalize else one.text)
        for one in readings_of(tokenizer, trial_texts(added_tokens(tokenizer)))
    ]


def _sentencepiece(file: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if re.match(rb"[A-Za-z0-9+/]+=* \d+\n", file.read_bytes()[:1000]):
            reason = (
                "it is of tiktoken's form, which does not say how a text is split; tokenizer.json is needed"
            )
        raise UserError(f"{file} is damaged or no SentencePiece model: {reason}") from None


def _nothing_to_read(folder: Path, config: dict[str, Any]) -> str:
    found = sorted({file.name for pattern in _OTHER_FORMS for file in folder.glob(pattern)})
    what = f", only {' and '.join(found)}, which do not say how a text is split" if found else ""
    code = "; its own code (auto_map) is never run" if "auto_map" in config else ""
    return (
        f"{folder} has no tokenizer{what}: it needs tokenizer.json or SentencePiece's tokenizer.model{code}"
    )


def _name_special_tokens(tokenizer: Any, folder: Path, config: dict[str, Any]) -> None:
    """Take BOS, EOS and padding from config.json where tokenizer_config.json is silent."""
    model = read_json(folder / "config.json")
    for role in _ROLES:
        index = model.get(f"{role}_token_id")
        silent = f"{role}_token" not in config and getattr(tokenizer, f"{role}_token_id") is None
        if silent and isinstance(index, int) and 0 <= index < len(tokenizer):
            tokenizer.add_special_tokens({f"{role}_token": tokenizer.convert_ids_to_tokens(index)})


def _check_ids_of_config(tokenizer: Any, folder: Path, config: dict[str, Any]) -> None:
    ids = tokenizer.get_vocab() if "added_tokens_decoder" in config else {}
    for index, token in config.get("added_tokens_decoder", {}).items():
        own = ids.get(token["content"])
        if own != int(index):
            raise UserError(
                f"{folder}: {token['content']!r} is token {index} in tokenizer_config.json, but {own} in the "
                "tokenizer's other files: correct the one that is wrong"
            )


def read_json(file: Path) -> dict[str, Any]:
    """Return what `read_json_object` does, or {} where there is no file."""
    return read_json_object(file) if file.exists() else {}
