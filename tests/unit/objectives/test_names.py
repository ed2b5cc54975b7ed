"""Names: what parses, what is refused and how, a user's own function, the listing and its picture."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_probsft.objectives.forms import FORMS
from megatron_probsft.objectives.registry import ObjectiveError, get_objective, hidden_threshold

ROOT = Path(__file__).parents[3]
LOG_P = torch.tensor([-5.0, -0.7, -0.1])

MODULE = """
import functools
import torch

def tempered(log_p, entropy, gamma=2.0):
    "entropy-weighted"
    return -entropy * log_p * gamma

halved = functools.partial(tempered, gamma=0.5)

def only_right(log_p, correct, vocab_size):
    return torch.where(correct, -log_p, -log_p / vocab_size)

def pushes_down(log_p):
    return -log_p.exp() * log_p

def unknown(log_p, margin):
    return -log_p

def takes_p(p):
    return -p

def scalar(log_p):
    return -log_p.mean()

def double(log_p):
    return -log_p.double()

def raises(log_p):
    raise RuntimeError("first line" + chr(10) + "second line")

def constant(log_p):
    return torch.zeros_like(log_p)

def infinite(log_p):
    return torch.log(1 - log_p.exp())

def nan_gradient(log_p):
    u = 1 - log_p.exp()
    return torch.where(u > 0, u.sqrt(), torch.zeros_like(u))

def cut_off(log_p):
    return torch.where(log_p.exp() >= 0.3, -log_p, torch.zeros_like(log_p))

def keeps_some(log_p):
    return torch.where(log_p.exp() >= 0.3, -log_p, torch.zeros_like(log_p))
keeps_some.keeps = lambda log_p: log_p.exp() >= 0.3

def keeps_too_little(log_p):
    return torch.where(log_p.exp() >= 0.3, -log_p, torch.zeros_like(log_p))
keeps_too_little.keeps = lambda log_p: log_p.exp() >= 0.5

def keeps_numbers(log_p):
    return -log_p
keeps_numbers.keeps = lambda log_p: log_p.exp()

def keeps_nothing(log_p):
    return -log_p
keeps_nothing.keeps = lambda log_p: None

def keeps_of_p(log_p):
    return -log_p
keeps_of_p.keeps = lambda: None

def keeps_a_word(log_p):
    return -log_p
keeps_a_word.keeps = "all"

NUMBER = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_losses_for_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != ""])
    return "user_losses_for_test"


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("GeneralFamily--0.5", lambda x: (torch.exp(-0.5 * x) - 1) / 0.5),
        ("GeneralFamily--5e-1", lambda x: (torch.exp(-0.5 * x) - 1) / 0.5),
        ("GeneralFamily-+2", lambda x: (1 - torch.exp(2 * x)) / 2),
        ("GeneralFamily-2.", lambda x: (1 - torch.exp(2 * x)) / 2),
        ("Poly1--5E-1", lambda x: -x - 0.5 * (1 - x.exp())),
        ("OnlyIntervalLogP-1e-1-.6", lambda x: torch.where((x.exp() >= 0.1) & (x.exp() <= 0.6), -x, 0 * x)),
        ("TALR-5e-1-1e-2", lambda x: -(2 * x).exp().clamp(min=0.01) * x),
    ],
)
def test_numbers_may_be_signed_and_scientific(name: str, same_as) -> None:
    torch.testing.assert_close(get_objective(name)(LOG_P), same_as(LOG_P), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GeneralFamly-8", "did you mean GeneralFamily-α"),
        ("orginal", "did you mean original"),
        ("dft", "did you mean DFT or DFT-γ"),
        ("nll", "known: original, logp, p"),
        ("GeneralFamily", "needs a parameter: GeneralFamily-α with .*, e.g. GeneralFamily-8"),
        ("GeneralFamily-", "needs a parameter"),
        ("OnlyIntervalP-0.2", "needs 2 parameters: OnlyIntervalP-a-b with 0 ≤ a < b ≤ 1"),
        ("DFT-", "needs a parameter"),
        ("GeneralFamily-x", "'x' is not a number"),
        ("GeneralFamily-8-", "'' is not a number"),
        ("TALR-0.5-1e", "'1e' is not a number"),
        ("GeneralFamily-inf", "α = inf is out of range"),
        ("GeneralFamily-nan", "out of range"),
        ("OnlyTopP-1", "0 ≤ q < 1"),
        ("OnlyTopLogP--0.1", "0 ≤ q < 1"),
        ("OnlyBottomP-0", "0 < q ≤ 1"),
        ("OnlyBottomLogP-1.5", "0 < q ≤ 1"),
        ("OnlyIntervalP-0.5-0.2", "a = 0.5, b = 0.2 is out of range"),
        ("OnlyIntervalLogP-0.5-0.5", "out of range"),
        ("ProFit-1", "out of range"),
        ("LogOneMinusP-0", "out of range"),
        ("Huber-0", "out of range"),
        ("Focal--1", "out of range"),
        ("Poly1--1.1", "out of range"),
        ("BoundedNLL-0", "out of range"),
        ("TrSFT-0", "out of range"),
        ("DFT--1", "out of range"),
        ("TALR-0-0.1", "out of range"),
        ("TALR-1-1.1", "out of range"),
        ("EAFT-0", "out of range"),
        ("Cayley-1.1", "out of range"),
        ("IDFT-2-1", "out of range"),
        ("p-2", "takes no parameter"),
        ("Brier-", "takes no parameter"),
        ("OnlyTopP-0.2-0.3", "takes a parameter, got 2"),
        ("PLogP", r"s = -0.135 < 0 at p = 0.13\d: .* probability down; .*p.detach\(\).* objective DFT$"),
    ],
)
def test_bad_names_say_what_would_be_right(name: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message) as caught:
        get_objective(name)
    assert "\n" not in str(caught.value)


def test_plogp_is_not_offered() -> None:
    with pytest.raises(ObjectiveError) as caught:
        get_objective("plogp")
    assert "PLogP" not in str(caught.value)


def test_a_users_function(user_module: str) -> None:
    entropy = torch.tensor([2.0, 0.5, 0.1])
    others = {"collision": entropy, "correct": entropy > 1, "vocab_size": 10}
    tempered = get_objective(f"{user_module}:tempered")
    assert tempered.needs == ("entropy",)
    assert tempered.formula == "entropy-weighted"
    torch.testing.assert_close(tempered(LOG_P, entropy=entropy, **others), -2 * entropy * LOG_P)
    halved = get_objective(f"{user_module}:halved")
    torch.testing.assert_close(halved(LOG_P, entropy=entropy), -0.5 * entropy * LOG_P)
    only_right = get_objective(f"{user_module}:only_right")
    assert only_right.needs == ("correct", "vocab_size")
    torch.testing.assert_close(only_right(LOG_P, **others), -LOG_P * torch.tensor([1, 0.1, 0.1]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "pushes_down",
            r"s = -0.135 < 0 at p = 0.13\d: minimising it would push .* down; stop .*p.detach\(\)",
        ),
        ("unknown", "unknown statistic 'margin'; known: entropy, collision, correct, vocab_size"),
        ("takes_p", "first parameter must be log_p"),
        ("scalar", r"one float32 loss per token, \[2001\]; got float32 \[\]"),
        ("double", "got float64"),
        ("raises", "fails on a trial call: RuntimeError: first line$"),
        ("constant", "no gradient with respect to log_p"),
        ("infinite", "its loss is -inf at p = 1"),
        ("nan_gradient", "its gradient weight is (nan|inf) at p = 1"),
        (
            "keeps_too_little",
            r"keeps leaves .* at p = 0.3\d* out, but there f is 1.\d+ and s is 1; both",
        ),
        ("keeps_numbers", r"keeps must return one bool per token, \[2001\]; got float32 \[2001\]"),
        ("keeps_nothing", "keeps must return one bool per token.*; got NoneType"),
        ("keeps_of_p", "fails on a trial call: TypeError: .*takes 0 positional arguments"),
        ("keeps_a_word", "fails on a trial call: TypeError: 'str' object is not callable"),
        ("NUMBER", "has no function 'NUMBER'"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_users_function_is_tried_first(user_module: str, function: str, message: str) -> None:
    with pytest.raises(ObjectiveError, match=message) as caught:
        get_objective(f"{user_module}:{function}")
    assert "\n" not in str(caught.value)


def test_a_users_function_says_what_it_keeps(user_module: str) -> None:
    keeps_some = get_objective(f"{user_module}:keeps_some")
    assert keeps_some.kept(LOG_P).tolist() == [False, True, True]
    assert hidden_threshold(keeps_some) is None
    cut_off = get_objective(f"{user_module}:cut_off")
    assert cut_off.kept(LOG_P).all()
    assert hidden_threshold(cut_off) == pytest.approx(0.3, rel=0.05)


def test_a_missing_module_is_one_line() -> None:
    with pytest.raises(ObjectiveError, match="cannot import 'no_such_module_here': ModuleNotFoundError"):
        get_objective("no_such_module_here:f")


def _program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "megatron_probsft.objectives", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_listing_and_its_picture(tmp_path: Path) -> None:
    result = _program(tmp_path, "--output", "tmp.png")
    assert result.returncode == 0, result.stderr
    for form in FORMS:
        for text in (form.pattern, form.formula.split()[0], form.weight, form.range):
            assert text in result.stdout
    assert f"wrote {tmp_path / 'tmp.png'}" in result.stdout
    assert (tmp_path / "tmp.png").read_bytes()[:4] == b"\x89PNG"


def test_the_listing_writes_no_file_unasked(tmp_path: Path) -> None:
    result = _program(tmp_path, "original", "GeneralFamily-8")
    assert result.returncode == 0, result.stderr
    assert "GeneralFamily-8" in result.stdout
    assert "wrote" not in result.stdout
    assert not list(tmp_path.iterdir())


def test_the_program_refuses_a_wrong_name_in_one_line(tmp_path: Path) -> None:
    result = _program(tmp_path, "original", "Focal-x")
    assert result.returncode == 2
    assert result.stderr.startswith("error: objective 'Focal-x': 'x' is not a number")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
