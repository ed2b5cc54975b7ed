"""Figlet answers: exact, in any case, and Jaro-Winkler against published values and rapidfuzz's Jaro."""

from __future__ import annotations

import random

import pytest
from rapidfuzz.distance import Jaro

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.domains.registry import get_domain
from megatron_probsft.grading.similarity import jaro_winkler


@pytest.mark.parametrize(
    ("one", "two", "value"),
    [
        ("MARTHA", "marhta ", 0.961), ("DWAYNE", "DUANE", 0.840), ("DIXON", "DICKSONX", 0.813), ("a", "b", 0),
        ("", "", 1), ("", "a", 0), ("abc", "abc", 1), ("ab", "ba", 0),
    ],
)  # fmt: skip
def test_known_values(one: str, two: str, value: float) -> None:
    """Winkler 1990's examples; matches further apart than half the longer word less one do not count."""
    assert jaro_winkler(one, two) == pytest.approx(value, abs=5e-4)


def test_against_rapidfuzz() -> None:
    """The prefix counts always; an odd number of letters out of order costs a half transposition more."""
    generator = random.Random(0)
    halves = 0
    for _ in range(5000):
        one, two = ("".join(generator.choices("abcde", k=generator.randint(1, 7))) for _ in "12")
        jaro = Jaro.similarity(one, two)
        prefix = 0
        while prefix < min(4, len(one), len(two)) and one[prefix] == two[prefix]:
            prefix += 1
        got = jaro_winkler(one, two)
        got_jaro = (got - 0.1 * prefix) / (1 - 0.1 * prefix)
        if got_jaro == pytest.approx(jaro, abs=1e-9):
            continue
        halves += 1
        assert any(jaro - got_jaro == pytest.approx(0.5 / met / 3) for met in range(3, 8))
    assert 0 < halves < 200


def test_grades() -> None:
    problem = Problem("figlet", "0", 0, "art", "Word", "row 1")
    texts = ["Word", "word", "World", " Word"]
    task = get_domain("figfont")
    grades = task.grade([problem] * 4, texts)
    assert [grade.verdict for grade in grades] == ["correct", "wrong", "wrong", "wrong"]
    assert [grade.similarity for grade in grades] == [1, 1, pytest.approx(0.953, abs=5e-4), 1]
    more = task.more_metrics([problem] * 4, texts, grades)
    assert more["case_insensitive"] == 0.5
    assert more["jaro_winkler"] == pytest.approx((3 + 0.9533) / 4, abs=1e-4)
    assert (task.samples, task.temperature, task.max_new_tokens) == (1, 0, 5)
