"""The tokens that end trained turns, against a count in plain Python, and what is not such a token."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_probsft.data.store import turn_ends as module
from megatron_probsft.data.store.turn_ends import TurnEnds, turn_ends
from megatron_probsft.data.text.templates import encode_messages, encode_pair
from megatron_probsft.data.tokenizers.load import load_tokenizer
from tests.support.tiny_models import save_tiny_tokenizer
from tests.unit.data.test_tokenizers import save_sentencepiece

END_OF_TEXT, IM_START, IM_END = 0, 1, 2
Sample = tuple[list[int], list[bool]]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    return save_tiny_tokenizer(tmp_path)


def store(*samples: Sample) -> Any:
    lengths = [len(tokens) for tokens, _ in samples]
    return SimpleNamespace(
        tokens=np.array([token for tokens, _ in samples for token in tokens], np.int32),
        trained=np.array([mark for _, marks in samples for mark in marks], np.bool_),
        offsets=np.cumsum([0, *lengths]),
    )


def marked(*parts: tuple[list[int], bool]) -> Sample:
    return [t for tokens, _ in parts for t in tokens], [mark for tokens, mark in parts for _ in tokens]


def test_conversations_and_pairs_as_the_trainer_encodes_them(tokenizer: Any) -> None:
    turn = [{"role": "user", "content": "what is one?"}, {"role": "assistant", "content": "it is\none"}]
    tokenizer.eos_token = "<|endoftext|>"
    found = turn_ends(store(encode_messages(tokenizer, turn * 3, "chat")), tokenizer)
    assert found.turns == 3
    assert found.counts[IM_END] >= 2
    assert set(found.counts) <= {IM_END, END_OF_TEXT}
    pairs = [encode_pair(tokenizer, "one", text, "plain") for text in ("two\n", "three")]
    assert turn_ends(store(*pairs), tokenizer) == TurnEnds({END_OF_TEXT: 2}, 2)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
def test_every_run_is_counted_once(tokenizer: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    generator = random.Random(3)
    samples, expected, turns = [], Counter(), 0
    words = tokenizer("what is the sum of one and two?", add_special_tokens=False)["input_ids"]
    for _ in range(40):
        parts: list[tuple[list[int], bool]] = []
        for _ in range(generator.randint(1, 3)):
            if parts or generator.random() < 0.7:  # else trained from its first token on: cut at the left
                parts.append((generator.choices([*words, IM_END], k=generator.randint(1, 9)), False))
            end = generator.choice([IM_END, IM_END, END_OF_TEXT])
            parts.append(([*generator.choices(words, k=generator.randint(0, 6)), end], True))
            expected[end] += 1
            turns += 1
        if generator.random() < 0.5:
            parts.append((words[:3], False))
        samples.append(marked(*parts))
    found = turn_ends(store(*samples), tokenizer)
    assert (found.counts, found.turns) == (dict(expected), turns)
    assert list(found.counts) == [IM_END, END_OF_TEXT]  # the most frequent first


def test_neither_words_nor_tokens_inside_a_turn_are_ends(tokenizer: Any) -> None:
    words = tokenizer("it is three", add_special_tokens=False)["input_ids"]
    whole = marked(([5, 6], False), ([*words, IM_END], True))
    cut = marked(([5, 6], False), (words, True))  # by --truncation, in the middle of a response
    inside = marked(([5, 6], False), ([7, IM_START, 8, IM_START, 9, IM_END], True))
    cut_inside = marked(([5, 6], False), ([7, IM_START, 8, IM_START], True))
    assert turn_ends(store(whole, cut, inside, cut_inside), tokenizer).counts == {IM_END: 2}
    accident = turn_ends(store(*[whole] * 5000, marked(([5], False), ([7, IM_START], True))), tokenizer)
    assert accident == TurnEnds({IM_END: 5000}, 5001)
    assert turn_ends(store(cut, cut), tokenizer) == TurnEnds({}, 2)


def test_white_space_after_an_end_belongs_to_the_template(tokenizer: Any) -> None:
    """As `{% generation %}` blocks have it that include the line's end."""
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    sample = marked(
        ([5, 6], False), ([9, IM_END, *newline], True), ([5], False), ([9, IM_END, *newline * 2], True)
    )
    assert turn_ends(store(sample, sample), tokenizer) == TurnEnds({IM_END: 4}, 4)
    assert turn_ends(store(marked((newline, True))), tokenizer) == TurnEnds({}, 1)


def test_added_tokens_that_are_not_special_may_be_ends(tokenizer: Any) -> None:
    tokenizer.add_tokens(["<end>"])
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert turn_ends(store(marked(([5], False), ([9, end], True))), tokenizer).counts == {end: 1}


def test_control_tokens_of_sentencepiece(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_sentencepiece(tmp_path / "model", control_symbols=["<turn>"]))
    end = tokenizer.sp_model.piece_to_id("<turn>")
    words = tokenizer("what is it", add_special_tokens=False)["input_ids"]
    sample = marked((words, False), ([*words, end], True))
    assert turn_ends(store(sample), tokenizer) == TurnEnds({end: 1}, 1)


def test_what_is_said(tokenizer: Any) -> None:
    text = TurnEnds({IM_END: 750, END_OF_TEXT: 230}, 1000).describe(tokenizer)
    assert text == (
        "trained turns end with <|im_end|> (75.0%), <|endoftext|> (23.0%); 20 of 1,000 end without, and do "
        "not teach the model to stop"
    )
    assert TurnEnds({IM_END: 5}, 5).describe(tokenizer) == "trained turns end with <|im_end|> (100.0%)"
    assert "will not learn to stop" in TurnEnds({}, 5).describe(tokenizer)
