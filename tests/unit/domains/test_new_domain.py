"""A domain is a file in the folder of domains: every command knows it, its templates and its settings."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft import domains as package
from megatron_probsft.commands import evaluate, prepare_data
from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES, check_template_name
from megatron_probsft.data.text.templates import encode_prompt
from megatron_probsft.domains import domain as domain_module
from megatron_probsft.domains.preparing.preparation import Preparation, prepare
from megatron_probsft.domains.registry import domains, get_domain
from megatron_probsft.domains.templates import default_template, template_for
from megatron_probsft.evaluation.tasks import get_task
from megatron_probsft.experiments.arguments import read_command_line
from megatron_probsft.experiments.plan import data_of, plan
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import save_tiny_tokenizer

SUMS = """
from megatron_probsft.data.text.named_templates import NamedTemplate, chatml
from megatron_probsft.domains.domain import Domain, Example, Experiment, Generated, Generator, Shape
from megatron_probsft.domains.task import graded_by


def generate(train, test, seed):
    rows = [Example(f"{n} + {seed}?", f"It is {n + seed}.", str(n + seed), "made sums", n) for n in range(90)]
    return Generated(rows[: train or 80], rows[80 : 80 + (test or 10)], {"generator": "sums"})


DOMAIN = Domain(
    name="sums",
    version=7,
    templates={"qwen-sums": NamedTemplate.of(chatml("Add.", "\\n"))},
    prompts={"chatml": "qwen-sums"},
    shapes=(Shape(("question", "answer"), lambda question, answer: (question, answer, answer, {})),),
    generator=Generator(generate=generate, what="sums, made here", real=True),
    own_test=True,
    grade=graded_by("number"),
    samples=4,
    temperature=0.5,
    max_new_tokens=12,
    experiment=Experiment(seq_length=99),
)
"""
SMALLEST = textwrap.dedent(str(domain_module.__doc__).partition("number:\n")[2].partition("Importing the")[0])


@pytest.fixture
def add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds a file with this text to the domains; afterwards nothing of it is left."""
    folder = tmp_path / "more_domains"
    folder.mkdir()
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    templates = dict(NAMED_TEMPLATES)
    names: list[str] = []

    def write(text: str) -> None:
        names.append(f"added{len(names)}")
        (folder / f"{names[-1]}.py").write_text(text)

    yield write
    for name in names:
        sys.modules.pop(f"{package.__name__}.{name}", None)
    NAMED_TEMPLATES.clear()
    NAMED_TEMPLATES.update(templates)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["prepare_data.py", *words])
    prepare_data.main()


def test_every_command_knows_it(
    add: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(SUMS)
    assert list(domains()) == ["math", "medical", "figfont", "sums"]

    output = str(tmp_path / "data")
    command(monkeypatch, "sums", "--generate", "--train", "40", "--validation", "8", "--output", output)
    card = json.loads((tmp_path / "data" / "card.json").read_text())
    assert card["rows"] == {"train": 32, "validation": 8, "test": 10}

    task = get_task("sums", "exact", "", "")
    problems = task.load([output], None)
    assert [(one.benchmark, one.id, one.prompt, one.answer) for one in problems[:2]] == [
        ("made sums", "0", "80 + 42?", "122"), ("made sums", "1", "81 + 42?", "123"),
    ]  # fmt: skip
    assert [one.verdict for one in task.grade(problems[:2], ["It is 122.", "5"])] == ["correct", "wrong"]
    assert (task.version, task.samples, task.temperature) == (7, 4, 0.5)
    assert "sums 4 samples at temperature 0.5, 12 new tokens" in evaluate.description()
    assert "  sums     extra_info.question and reward_model.ground_truth" in evaluate.description()

    tokenizer = save_tiny_tokenizer(tmp_path / "model")
    check_template_name("qwen-sums")
    assert template_for("sums", "chatml") == default_template(get_domain("sums"), tokenizer) == "qwen-sums"
    text = "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1?\n<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert encode_prompt(tokenizer, "1?", "qwen-sums") == ids
    assert list(NAMED_TEMPLATES).index("qwen-sums") < list(NAMED_TEMPLATES).index("qwen-math-paper")
    with pytest.raises(UserError, match="sums has no prompt for llama: it has those of chatml"):
        template_for("sums", "llama")


def test_a_sweep_of_it(add: Callable[[str], None]) -> None:
    add(SUMS)
    words = ["--dataset", "sums", "--trainer-objective-trans", "p", "--cuda-visible-devices", "0"]
    sweep = read_command_line([*words, "--model-save-name", "qwen-2.5-7b", "--prepare-generate"], "").sweep
    assert data_of(sweep).name == "generated"  # not stand-in
    steps = {step.title.partition(":")[0]: " ".join(step.words) for step in plan(sweep)}
    assert "--template qwen-sums" in steps["training"]
    assert "--seq-length 99" in steps["training"]
    assert "--samples 4 --temperature 0.5 --max-new-tokens 12" in steps["scoring"]
    assert "test.parquet" in steps["scoring"]
    with pytest.raises(UserError, match="--paper trains as the paper's code does, and sums is no domain of"):
        read_command_line([*words, "--model-save-name", "qwen-2.5-7b", "--paper"], "")


def test_the_smallest_one(add: Callable[[str], None], tmp_path: Path) -> None:
    """As the docstring shows it: without prompts, generator, data on the hub and public benchmarks."""
    add(SMALLEST)
    rows = [json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    data, output = str(tmp_path / "rows.jsonl"), tmp_path / "data"
    prepare(Preparation("sums", data, output, test_data=[data], validation=1))
    task: Any = get_task("sums", "exact", "", "")
    problems = task.load([str(output)], None)
    assert [grade.correct for grade in task.grade(problems, ["1", "so 2", "4", "none"])] == [
        True,
        True,
        False,
        False,
    ]
    assert template_for("sums", "llama") == "chat"
    with pytest.raises(UserError, match="--task sums has no public benchmarks: name files with --data"):
        task.load([], None)
    with pytest.raises(UserError, match="--generate: sums has no generator: give --data FILE"):
        prepare(Preparation("sums", "generated", tmp_path / "more"))
    with pytest.raises(
        UserError, match="sums has no data on the hub: give --data FILE with the columns ques"
    ):
        prepare(Preparation("sums", "hub", tmp_path / "more"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (('name="sums"', 'name="math"'), "hold a domain of the name math"),
        (('{"chatml": "qwen-sums"}', '{"chatml": "qwen-boxed"}'), "domain sums: templates lacks qwen-boxed"),
        (('"qwen-sums"', '"qwen-boxed"'), "template qwen-boxed: another template has this name"),
    ],
)  # fmt: skip
def test_what_cannot_be(add: Callable[[str], None], changed: tuple[str, str], message: str) -> None:
    add(SUMS.replace(*changed))
    with pytest.raises(ValueError, match=message):
        domains()
