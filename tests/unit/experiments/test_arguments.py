"""The command line of one_click: both spellings, every model with every dataset, names that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_probsft.data.text.named_templates import template_names
from megatron_probsft.experiments.arguments import read_command_line
from megatron_probsft.experiments.plan import Sweep, plan
from megatron_probsft.runtime.errors import UserError

# As the paper's table has it, by model; its hyper-parameters do not depend on the domain.
PAPER_LR = {
    "qwen-2.5-math-1.5b": 5e-5, "qwen-2.5-math-7b": 5e-5, "qwen-2.5-1.5b": 5e-5, "qwen-2.5-7b": 5e-5,
    "llama-3.1-8b": 2e-5, "llama-3.2-3b": 5e-5, "deepseek-math-7b": 5e-5,
}  # fmt: skip
HUB = {
    "qwen-2.5-math-1.5b": "Qwen/Qwen2.5-Math-1.5B", "qwen-2.5-math-7b": "Qwen/Qwen2.5-Math-7B",
    "qwen-2.5-1.5b": "Qwen/Qwen2.5-1.5B", "qwen-2.5-7b": "Qwen/Qwen2.5-7B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B", "llama-3.2-3b": "meta-llama/Llama-3.2-3B",
    "deepseek-math-7b": "deepseek-ai/deepseek-math-7b-base",
}  # fmt: skip
MAX_LENGTH = {"math": "3072", "medical": "800", "figfont": "800"}


def sweep(*words: str) -> Sweep:
    return read_command_line(words, "").sweep


def step_words(built: Sweep, title: str) -> list[str]:
    return list(next(step for step in plan(built) if step.title.startswith(title)).words)


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


BASIC = ("--dataset", "figfont", "--model-save-name", "smollm2-135m", "--trainer-objective-trans", "p")


def test_underscores_and_hyphens_are_the_same() -> None:
    hyphens = [
        "--dataset", "math", "--model-save-name", "qwen-2.5-7b", "--trainer-objective-trans", "original", "p",
        "--nproc-per-node", "2", "--cuda-visible-devices", "0,1", "--tensor-model-parallel-size", "2",
        "--score-max-new-tokens=7", "--no-packing", "--seed", "1", "2",
    ]  # fmt: skip
    underscores = [
        word.replace("-", "_").replace("__", "--", 1) if word.startswith("--") else word for word in hyphens
    ]
    assert "--trainer_objective_trans" in underscores
    assert "--score_max_new_tokens=7" in underscores
    built = sweep(*hyphens)
    assert built == sweep(*underscores)
    assert built.train == {"tensor_model_parallel_size": 2, "packing": False}
    assert built.evaluate == {"max_new_tokens": 7}
    assert [(objective, seed) for objective, seed, _ in built.runs] == [
        ("original", 1), ("p", 1), ("original", 2), ("p", 2)
    ]  # fmt: skip


@pytest.mark.parametrize("dataset", MAX_LENGTH)
@pytest.mark.parametrize("model", PAPER_LR)
def test_every_model_has_every_dataset(model: str, dataset: str) -> None:
    built = sweep(
        "--dataset", dataset, "--model_save_name", model, "--trainer_objective_trans", "p",
        "--cuda_visible_devices", "0,1,2,3,4,5,6,7",
    )  # fmt: skip
    assert built.model.source == HUB[model]
    words = step_words(built, "training")
    assert float(value(words, "--lr")) == PAPER_LR[model]
    assert value(words, "--seq-length") == MAX_LENGTH[dataset]
    assert float(value(words, "--weight-decay")) == (1e-5 if dataset == "figfont" else 0.01)
    assert value(words, "--global-batch-size") == "256"
    assert value(words, "--train-epochs") == "1"
    assert value(words, "--lr-decay-style") == "cosine"
    assert value(words, "--lr-warmup-fraction") == "0.1"
    assert (value(words, "--adam-beta1"), value(words, "--adam-beta2")) == ("0.9", "0.95")
    assert value(words, "--clip-grad") == "1.0"
    assert value(words, "--nproc-per-node") == "8"
    assert "--use-distributed-optimizer" in words
    score = step_words(built, "scoring: p")
    assert value(score, "--template") == value(words, "--template")
    assert value(score, "--template") in template_names()
    assert "--tensor-parallel-size" not in score  # an engine on each GPU is faster
    if dataset == "math":
        assert (value(score, "--samples"), value(score, "--temperature")) == ("16", "1.0")
    assert value(score, "--max-new-tokens") == {"math": "4096", "medical": "8000", "figfont": "5"}[dataset]


def test_paper_takes_its_templates_and_denominator() -> None:
    command = (
        "--dataset", "math", "--model-save-name", "qwen-2.5-math-7b", "--trainer-objective-trans", "p",
        "--cuda-visible-devices", "0,1",
    )  # fmt: skip
    words = step_words(sweep(*command, "--paper"), "training")
    assert value(words, "--template") == "qwen-math-paper"
    assert value(words, "--loss-denominator") == "microbatch-sum"
    assert value(words, "--micro-batch-size") == "4"
    assert "--no-packing" in words
    assert "--loss-denominator" not in step_words(sweep(*command), "training")


def test_flags_of_the_command_line_win() -> None:
    words = step_words(sweep(*BASIC, "--train-epochs", "2", "--lr", "1e-3", "--bf16"), "training")
    assert value(words, "--train-epochs") == "2.0"
    assert "--train-iters" not in words
    assert float(value(words, "--lr")) == 1e-3
    assert words.count("--lr") == 1


def test_a_start_and_its_restart_are_one_command() -> None:
    words = step_words(sweep(*BASIC), "training")
    assert value(words, "--load") == value(words, "--save")
    assert value(words, "--hf-model").endswith("SmolLM2-135M-Instruct")
    assert int(value(words, "--save-interval")) < int(value(words, "--train-iters"))


def test_paths_are_relative_where_the_results_lie_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = step_words(sweep(*BASIC), "training")
    assert value(words, "--hf-model") == "runs/models/SmolLM2-135M-Instruct"
    assert value(words, "--save") == "runs/one_click/figfont/smollm2-135m/p-seed1/megatron"
    (tmp_path / "rows.jsonl").touch()
    own = ("--prepare-data", "rows.jsonl", "--prepare-test-data", "rows.jsonl")
    assert value(step_words(sweep(*BASIC, *own), "preparing"), "--data") == "rows.jsonl"
    elsewhere = sweep(*BASIC, *own, "--output", str(tmp_path.parent / "elsewhere"))
    assert value(step_words(elsewhere, "preparing"), "--data") == str(tmp_path / "rows.jsonl")
    assert value(step_words(elsewhere, "training"), "--save").startswith(str(tmp_path.parent / "elsewhere"))
    assert value(step_words(elsewhere, "training"), "--hf-model") == "runs/models/SmolLM2-135M-Instruct"


def test_no_command_runs_a_file_by_its_path() -> None:
    for step in plan(sweep(*BASIC)):
        assert step.words[0] == "-m"
        assert not [word for word in step.words if word.endswith(".py")]


def test_every_run_has_a_folder_of_its_own() -> None:
    runs = sweep(*BASIC, "GeneralFamily-0.5", "GeneralFamily--0.5", "--seed", "1", "2").runs
    assert len({folder for _, _, folder in runs}) == len(runs) == 6


def test_another_model_by_its_folder(tiny_llama: Path) -> None:
    built = sweep(*BASIC[:2], "--model", str(tiny_llama), "--trainer-objective-trans", "p")
    assert built.model.source == str(tiny_llama)
    words = step_words(built, "training")
    assert value(words, "--hf-model") == str(tiny_llama)
    assert value(words, "--template") == "qwen-figlet"  # its tokenizer has ChatML's tokens
    assert all("fetching" not in step.title for step in plan(built))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset", "figlet"), "did you mean figfont"),
        (("--model-save-name", "llama-3.1-3b"), "did you mean llama-3"),
        (("--trainer-objective-trans", "orginal"), "did you mean original"),
        (("--trainer-objective-trans", "p", "p"), "p more than once"),
        (("--seed", "1", "1"), "1 more than once"),
        (("--prepare-validation", "0"), "--prepare-validation 0: .* at least 1"),
        (("--prepare-test", "0"), "--prepare-test 0 leaves nothing to score on"),
        (("--prepare-data", "a.jsonl"), "give --prepare-test-data as well"),
        (("--cuda-visible-devces", "0"), "did you mean --cuda-visible-devices"),
        (("--tensor-model-paralel-size", "2"), "did you mean --tensor-model-parallel-size"),
        (("--model", "some/where"), "one of --model-save-name"),
        (("--paper",), "no model of the paper"),
        (("--cuda-visible-devices", "0,1", "--nproc-per-node", "4"), "more than the 2 GPU"),
    ],
)
def test_refusals_say_what_would_be_right(words: tuple[str, ...], message: str) -> None:
    replaced: list[str] = list(BASIC)
    if words[0] in replaced:
        at = replaced.index(words[0])
        replaced[at : at + 2] = words
    else:
        replaced += words
    with pytest.raises(UserError, match=message) as error:
        sweep(*replaced)
    assert "\n" not in str(error.value)
