"""What a report says about runs, against numbers worked out by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_probsft.objectives.registry import ObjectiveError, get_objective
from megatron_probsft.reporting.comparison import changed_verdicts, config_differences, examples
from megatron_probsft.reporting.gradient_mass import gradient_mass, mean_weights
from megatron_probsft.reporting.load import load_runs
from megatron_probsft.reporting.names import shortest_names
from megatron_probsft.reporting.report import write_report
from megatron_probsft.runtime.errors import UserError
from tests.support.report_runs import write_score, write_training

HOSTILE = "</pre><script>alert('&')</script> | <img src=http://x.example/a.png onerror=alert(1)>\n```\n| x |"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/quick/original", "/r/quick/p"], ["original", "p"]),
        (["/r/p/megatron", "/r/original/megatron"], ["p", "original"]),
        (["/r/math/smol/p-seed0", "/r/figfont/smol/base"], ["math/p-seed0", "figfont/base"]),
        (["/r/math/smol/p", "/r/figfont/smol/p"], ["math", "figfont"]),
        (["/r/a/x", "/r/b"], ["a/x", "b"]),
        (["/r/one/megatron"], ["one"]),
    ],
)
def test_names_are_the_parts_that_differ(paths: list[str], names: list[str]) -> None:
    assert shortest_names([Path(path) for path in paths]) == names


def test_only_settings_that_differ_are_listed(tmp_path: Path) -> None:
    write_training(tmp_path / "a", "original", lr=1e-4, load=str(tmp_path / "a"))
    write_training(tmp_path / "b" / "megatron", "p", lr=2e-4, clip_grad=0.5, load=None)
    write_score(tmp_path / "base" / "score", {"math": [1]})
    runs = load_runs([tmp_path / "a", tmp_path / "b", tmp_path / "base"])
    assert config_differences(runs) == {
        "objective": ["original", "p", None],
        "lr": [1e-4, 2e-4, None],
        "clip_grad": [None, 0.5, None],
    }


# s(p) = −f′(p)·p in float64, by hand.
WEIGHTS = {
    "original": np.ones_like,
    "p": lambda p: p,
    "GeneralFamily-10": lambda p: p**10,
    "GeneralFamily--0.5": lambda p: p**-0.5,
    "OnlyTopP-0.22": lambda p: np.where(p > 0.22, p, 0),
    "Focal-2": lambda p: (1 - p) ** 2 - 2 * p * (1 - p) * np.log(p),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_gradient_mass_is_the_integral_of_s_over_the_bin(name: str) -> None:
    shares = np.array([0.4, 0.1, 0.05, 0.15, 0.3])
    means = []
    for low, high in itertools.pairwise(np.linspace(0, 1, 6)):
        roots = np.linspace(low**0.25, high**0.25, 400_001)  # p = root⁴: dense where s may have a pole
        root, width = (roots[1:] + roots[:-1]) / 2, np.diff(roots)
        means.append((WEIGHTS[name](root**4) * 4 * root**3 * width).sum() / (high - low))
    assert mean_weights(get_objective(name), 5) == pytest.approx(means, rel=1e-3, abs=1e-9)
    expected = shares * means / (shares * means).sum()
    assert gradient_mass(get_objective(name), [*shares]) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_gradient_mass_by_hand() -> None:
    # 1 − p: s = p, whose means over two bins are ¼ and ¾.
    assert gradient_mass(get_objective("p"), [0.6, 0.4]) == pytest.approx([1 / 3, 2 / 3])
    assert gradient_mass(get_objective("original"), [0.6, 0.4]) == pytest.approx([0.6, 0.4])


def test_what_p_alone_does_not_tell_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="entropy"):
        gradient_mass(get_objective("EAFT-1"), [0.5, 0.5])
    with pytest.raises(ObjectiveError, match="no token has a gradient"):
        gradient_mass(get_objective("OnlyTopP-0.6"), [1.0, 0.0])


def test_verdicts_that_changed(tmp_path: Path) -> None:
    write_score(tmp_path / "a" / "score", {"math": [1, 1, 0, 0], "gsm": [0]}, samples=2)
    write_score(tmp_path / "b" / "score", {"math": [1, 0, 1, 0, 1], "gsm": [1]}, samples=2)
    runs = load_runs([tmp_path / "a", tmp_path / "b"])
    changes = changed_verdicts(runs)
    ids = {pair: [change.key[1] for change in found] for pair, found in changes.items()}
    assert ids == {(0, 1): ["math-1"], (1, 0): ["math-2", "gsm-0"]}  # math-4 was asked of b only
    assert [change.key[1] for change in examples(changes, 2)] == ["math-1", "math-2"]  # one of each direction


def _report(folder: Path) -> Path:
    write_score(folder / "base" / "score", {"math": [0, 1, 0]}, generation=HOSTILE)
    write_training(folder / "p" / "megatron", "p")
    write_score(folder / "p" / "score", {"math": [1, 1, 1]}, generation="fine {id}")
    write_training(folder / "eaft", "EAFT-1")
    return write_report([folder / "base", folder / "p", folder / "eaft"], folder / "report")


def test_report_says_what_the_runs_hold(tmp_path: Path) -> None:
    page = _report(tmp_path).read_text()
    markdown = (tmp_path / "report" / "report.md").read_text()
    for text in (page, markdown):
        for expected in (
            "1.200 → 0.300", "0.450 → 0.863", "33.3 % (23.3 to 48.3)", "4 min 52 s", "base: no training",
            "eaft: no evaluation", "2 of 3", "SmolLM2-135M-Instruct",
        ):  # fmt: skip
            assert expected in text
        assert "EAFT-1" in text
        assert "too, not by p alone" in text.replace("&#39;", "'")  # why its gradient mass is not there
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    p = content["runs"][1]
    assert p["validation"]["nll"] == pytest.approx([1.2, 0.6, 0.3])
    assert sum(p["gradient_mass"]["after"]) == pytest.approx(1)
    assert content["runs"][2]["gradient_mass"] == {}
    linked = [line.split("(")[1].rstrip(")") for line in markdown.splitlines() if line.startswith("![")]
    assert linked
    assert all((tmp_path / "report" / file).is_file() for file in linked)


def test_generations_are_text_never_markup(tmp_path: Path) -> None:
    page = _report(tmp_path).read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;/pre&gt;&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in page
    assert "http" not in page.replace("http-equiv", "").replace(
        "http://x.example/a.png", ""
    )  # no address but that text
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert f"````\n{HOSTILE}\n````" in markdown  # a fence that the text does not close


@pytest.mark.parametrize(
    ("make", "named", "message"),
    [
        (lambda root: None, ["nowhere"], "nowhere does not exist"),
        (lambda root: (root / "empty").mkdir(), ["empty"], "empty holds no run: expected the trainer's"),
        (lambda root: write_training(root / "a" / "megatron", "p"), ["a", "a/megatron"], "are the same run"),
        (
            lambda root: (write_training(root / "a", "p") / "metrics.jsonl").write_text('{"kind"\n{}\n'),
            ["a"], r"metrics.jsonl line 1 is not valid JSON",
        ),
    ],
)  # fmt: skip
def test_wrong_runs_are_one_line(
    tmp_path: Path, make: Callable[[Path], Any], named: list[str], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        write_report([tmp_path / name for name in named], tmp_path / "report")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_unfinished_parts_are_named(tmp_path: Path) -> None:
    run = write_training(tmp_path / "a" / "megatron", "p", steps=6)
    (run / "summary.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # being written
    (write_score(tmp_path / "a" / "score", {"math": [1]}) / "summary.json").unlink()
    markdown = (write_report([tmp_path / "a"], tmp_path / "report").parent / "report.md").read_text()
    assert "a: no evaluation (score/ is not complete), training not ended at step 6" in markdown
