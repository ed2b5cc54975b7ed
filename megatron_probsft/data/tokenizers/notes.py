"""Notes on folders from which transformers reads other tokens than are used here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from megatron_probsft.data.tokenizers.load import read_json
from megatron_probsft.data.tokenizers.trial import added_tokens, check_readings, readings_of, trial_texts
from megatron_probsft.runtime.errors import UserError

_PLAIN = (None, "PreTrainedTokenizerFast", "TokenizersBackend")
_CURE = '"tokenizer_class": "PreTrainedTokenizerFast" in its tokenizer_config.json makes them agree'
_NO_CURE = "send them token ids, as `evaluate --server` does"


def tokenizer_notes(folder: str | Path, tokenizer: Any) -> list[str]:
    """Return what a user should know of a folder's tokenizer, as `load_tokenizer` gives it, a line each."""
    folder = Path(folder)
    config = read_json(folder / "tokenizer_config.json")
    has_file = (folder / "tokenizer.json").exists()
    notes = [f"{folder}: {note}" for note in (_flags(config, tokenizer) if has_file else ())]
    difference = difference_to_transformers(folder, tokenizer)
    if difference:
        notes.append(
            f"{folder}: transformers' AutoTokenizer, and so vLLM's server, reads other tokens than the files "
            f"define and than are trained here ({difference}): {_CURE if has_file else _NO_CURE}"
        )
    return notes


def _flags(config: dict[str, Any], tokenizer: Any) -> list[str]:
    """Note where tokenizer_config.json contradicts tokenizer.json about the tokens around a text."""
    mask = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    notes = []
    for role, is_there in (("bos", mask[0] == 1), ("eos", mask[-1] == 1)):
        flag = config.get(f"add_{role}_token")
        if isinstance(flag, bool) and flag is not is_there:
            notes.append(
                f"tokenizer_config.json has add_{role}_token {str(flag).lower()}, but tokenizer.json "
                f"{'adds' if is_there else 'adds no'} {role.upper()}; tokenizer.json decides, as in "
                "transformers 5 and vLLM"
            )
    return notes


def difference_to_transformers(folder: Path, tokenizer: Any) -> str | None:
    """Say in words where AutoTokenizer reads a trial otherwise than the folder's tokenizer; else None."""
    named = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if named in _PLAIN and (folder / "tokenizer.json").exists():
        return None
    return compare_with_transformers(folder, tokenizer)


def compare_with_transformers(folder: Path, tokenizer: Any) -> str | None:
    """Return what `difference_to_transformers` does, whatever class the folder names."""
    try:
        other: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_readings(other, readings_of(tokenizer, trial_texts(added_tokens(tokenizer))), "")
    except UserError as difference:
        return str(difference)
    except Exception as error:  # other programs meet it, too
        return f"it fails with {type(error).__name__}"
    return None
