"""Multiple-choice questions from the ICD-10-CM tree: where is a diagnosis filed?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from random import Random

from megatron_probsft.domains.domain import Example, Generated, check_number
from megatron_probsft.runtime.errors import UserError

NAME = "generated stand-in: icd10_choice (simple-icd-10-cm)"
TRAIN, TEST = 10_000, 500
_TEST_SHARE = 0.15  # of each chapter's categories
_PER_CATEGORY = 20  # most diagnoses asked about, so that injuries and accidents do not fill the set
_KINDS = (("chapter", 5), ("block", 4))  # what is asked, number of options
_LETTERS = "ABCDE"


@dataclass(frozen=True)
class _Diagnosis:
    """A diagnosis and the names of what it is filed under."""

    code: str
    text: str
    category: str  # its text
    block: str
    chapter: str


def generate(train: int | None, test: int | None, seed: int) -> Generated:
    """Questions about the chapter, or the block of a chapter, that a diagnosis is filed under.

    No category of diagnoses is in both parts. Chapters and blocks are shared by both, so that what training
    tells about them helps in the test.

    Raises UserError: more questions than there are; simple-icd-10-cm is not installed.
    """
    check_number("train", train)
    check_number("test", test)
    rng = Random(seed)
    tree = _read_tree()
    held_out = {
        category
        for chapter in sorted({one.chapter for one in tree})
        for category in _share(sorted({one.category for one in tree if one.chapter == chapter}), rng)
    }
    parts = {"train": [one for one in tree if one.category not in held_out]}
    parts["test"] = [one for one in tree if one.category in held_out]
    asked = {one.text for one in parts["test"]}
    parts["train"] = [one for one in parts["train"] if one.text not in asked]
    blocks = defaultdict(list)
    for one in tree:
        if one.block not in blocks[one.chapter]:
            blocks[one.chapter].append(one.block)
    examples = {}
    for part, wanted, default in (("train", train, TRAIN), ("test", test, TEST)):
        questions = list(_questions(parts[part], blocks, rng))
        wanted = default if wanted is None else wanted
        if len(questions) < wanted:
            raise UserError(
                f"ICD-10-CM gives {len(questions):,} questions for {part}: ask for as many by --{part}"
            )
        examples[part] = questions[:wanted]
    about = {
        "generator": f"simple-icd-10-cm=={version('simple-icd-10-cm')}",
        "seed": seed,
        "test_categories": len(held_out),
        "train_categories": len({one.category for one in tree} - held_out),
    }
    notes = (
        "A stand-in for the paper's m23k data, not that.",
        "Training and test share no ICD-10-CM category.",
    )
    return Generated(examples["train"], examples["test"], about, notes)


def _read_tree() -> list[_Diagnosis]:
    """The diagnoses, without those that differ from another in the encounter only."""
    try:
        import simple_icd_10_cm as icd  # here: it reads its whole tree
    except ImportError:
        raise UserError(
            "ICD-10 questions need simple-icd-10-cm: pip install simple-icd-10-cm==1.5.0"
        ) from None
    found, seen = [], set()
    for code in icd.get_all_codes():
        if not (icd.is_category(code) or icd.is_subcategory(code)) or len(code.replace(".", "")) > 6:
            continue
        *lower, block, chapter = icd.get_ancestors(code) if "." in code else [code, *icd.get_ancestors(code)]
        text = icd.get_description(code)
        if chapter == "22" or "-" not in block or not lower or text in seen:  # special codes; a block of one
            continue
        seen.add(text)
        names = [_title(icd.get_description(one)) for one in (lower[-1], block, chapter)]
        found.append(_Diagnosis(code, text, *names))
    return found


def _title(description: str) -> str:
    """The description without the range of codes, which would name the block."""
    return re.sub(r" \([A-Z0-9]+-[A-Z0-9]+\)$", "", description)


def _share(categories: list[str], rng: Random) -> list[str]:
    return rng.sample(categories, max(1, round(_TEST_SHARE * len(categories))))


def _questions(diagnoses: list[_Diagnosis], blocks: dict[str, list[str]], rng: Random) -> Iterator[Example]:
    """All questions that can be asked, in random order; of a category's diagnoses each kind in turn."""
    by_category: dict[str, list[_Diagnosis]] = defaultdict(list)
    for one in diagnoses:
        by_category[one.category].append(one)
    chosen = [
        one for group in by_category.values() for one in rng.sample(group, min(_PER_CATEGORY, len(group)))
    ]
    rng.shuffle(chosen)
    for index, one in enumerate(chosen):
        kind, options = _KINDS[index % len(_KINDS)]
        answer = one.chapter if kind == "chapter" else one.block
        others = [name for name in (blocks if kind == "chapter" else blocks[one.chapter]) if name != answer]
        if len(others) >= options - 1:
            yield _example(one, kind, answer, rng.sample(others, options - 1), index, rng)


def _example(one: _Diagnosis, kind: str, answer: str, others: list[str], index: int, rng: Random) -> Example:
    names = [answer, *others]
    rng.shuffle(names)
    options = dict(zip(_LETTERS, names, strict=False))
    letter = _LETTERS[names.index(answer)]
    asked = (
        f'Under which chapter of ICD-10-CM is "{one.text}" filed?'
        if kind == "chapter"
        else f'In which group of ICD-10-CM is "{one.text}" filed?'
    )
    question = "\n".join([asked, *(f"{key}. {name}" for key, name in options.items())])
    under = "is" if one.text == one.category else f'comes under "{one.category}", which is'
    reasoning = f'"{one.text}" {under} filed in the group "{one.block}" of the chapter "{one.chapter}".'
    response = f"{reasoning} The answer is \\boxed{{{letter}}}."
    more = {"answer_string": answer, "code": one.code, "kind": kind}
    return Example(question, response, letter, NAME, index, more)
