"""A trial of tokenizers: texts in which they are known to differ, and their readings of these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_probsft.runtime.errors import UserError

_TEXTS = (
    "What is the sum of 1 and 2?", "What  is   the    sum?", " before and after ", "\n", "\t", "   ",
    "first\nsecond\n\n\nthird\r\nfourth\r\n", "\tif x:\n\t\treturn  y\n        z",
    "0 12 345 6789 3.14159", "don't DON'T we'll", "(a+b)*c^2 == \\frac{1}{2} != $x_i$ <= >= -> …",
    "caf\u00e9 na\u00efve \u00c5ngstr\u00f6m", "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "日本語と中文 한국어", "Привет мир, γειά", "مرحبا שלום", "🎉 \U0001f469\u200d\U0001f467 ✅",
    "ﬁne ＡＢＣ１ ½", "a\u00a0b\u200bc\u3000d", "▁a ▁▁ b", "x" * 40, "abc ABC Abc aBC",
)  # fmt: skip


@dataclass(frozen=True)
class TrialReading:
    """A text, its ids without (and, where known, with) special tokens around it, and the text of the ids."""

    text: str
    ids: list[int]
    decoded: str
    with_special: list[int] | None = None


def trial_texts(added: Iterable[str] = ()) -> list[str]:
    """Return the trial's texts that hold none of these added tokens."""
    added = list(added)
    return [text for text in _TEXTS if not any(token in text for token in added)]


def readings(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    encode_with_special: Callable[[str], list[int]] | None = None,
) -> list[TrialReading]:
    """Read the texts with a tokenizer; those that it has no tokens for are left out."""
    result = []
    for text in texts:
        try:
            ids = encode(text)
        except Exception:  # the tokenizers library raises nothing narrower
            continue
        result.append(
            TrialReading(text, ids, decode(ids), encode_with_special(text) if encode_with_special else None)
        )
    return result


def readings_of(tokenizer: Any, texts: Sequence[str]) -> list[TrialReading]:
    """Read the texts with a tokenizer of transformers."""
    return readings(
        texts,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        lambda ids: tokenizer.decode(ids, clean_up_tokenization_spaces=False),
        lambda text: tokenizer(text, add_special_tokens=True)["input_ids"],
    )


def added_tokens(tokenizer: Any) -> list[str]:
    """Return the texts that a tokenizer of transformers takes for one token wherever they stand."""
    return [token.content for token in tokenizer.added_tokens_decoder.values()]


def check_readings(tokenizer: Any, expected: Sequence[TrialReading], where: str) -> None:
    """Raise UserError, with the text and its ids, unless a tokenizer reads and writes as expected."""
    for one in expected:
        for special, ids in ((False, one.ids), (True, one.with_special)):
            own = ids if ids is None else tokenizer(one.text, add_special_tokens=special)["input_ids"]
            if own != ids:
                text = tokenizer.decode(own, clean_up_tokenization_spaces=False)
                raise UserError(
                    f"{where}{one.text!r} becomes {_some(own)}, {text!r}, but by the file {_some(ids)}"
                )
        decoded = tokenizer.decode(one.ids, clean_up_tokenization_spaces=False)
        if decoded != one.decoded:
            raise UserError(
                f"{where}the tokens {_some(one.ids)} become {decoded!r}, but by the file {one.decoded!r}"
            )


def _some(ids: list[int] | None) -> str:
    ids = ids or []
    return f"[{', '.join(map(str, ids[:12]))}{', …' if len(ids) > 12 else ''}]"
