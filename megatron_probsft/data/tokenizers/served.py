"""A folder's tokenizer as servers open it: like transformers, with the class that the folder names.

Some classes of transformers 5 put their own parts in place of those of tokenizer.json (see
`data.tokenizers.load`): a server would then show the model other tokens than it was trained on.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.data.tokenizers.load import read_json
from megatron_probsft.data.tokenizers.notes import compare_with_transformers, difference_to_transformers

_CONFIG = "tokenizer_config.json"
_PLAIN = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in every version of transformers


@dataclass(frozen=True)
class ServedTokenizer:
    """A comparison of our tokenizer with the one that a server opens from the same folder."""

    named: str | None
    """The class that tokenizer_config.json is to name; None if that is well, or no name would help."""
    difference: str | None
    """The difference in words, where a server reads otherwise whatever class is named; else None."""


def served_tokenizer(tokenizer: Any, folder: Path) -> ServedTokenizer:
    """Compare a folder's tokenizer, as `load_tokenizer` gives it, with what a server opens, in a trial."""
    difference = difference_to_transformers(folder, tokenizer)
    if difference is None or not (folder / "tokenizer.json").is_file():
        return ServedTokenizer(None, difference)
    with tempfile.TemporaryDirectory() as renamed:
        for file in folder.resolve().iterdir():
            if file.name != _CONFIG and file.is_file():
                (Path(renamed) / file.name).symlink_to(file)
        config = read_json(folder / _CONFIG) | {"tokenizer_class": _PLAIN}
        (Path(renamed) / _CONFIG).write_text(json.dumps(config))
        helped = compare_with_transformers(Path(renamed), tokenizer) is None
    return ServedTokenizer(_PLAIN, None) if helped else ServedTokenizer(None, difference)
