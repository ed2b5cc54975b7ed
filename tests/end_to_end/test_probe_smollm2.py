"""The probe on a real model: where SmolLM2 stands on math, medical questions and figlet art."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from reasoning_gym import create_dataset

from megatron_probsft.commands.probe import run as run_probe
from megatron_probsft.probing.probe import Reading
from tests.support.ranks import run_ranks
from tests.support.training_runs import config_for

ROOT = Path(__file__).parents[2]
FIGLET = {"min_word_len": 2, "max_word_len": 5, "space_letters": True}  # as in the paper
# Mean p, chat template, over the response's tokens and EOS. The project noted these from plain transformers,
# of small samples and without EOS. A fourth of chain_sum's tokens are EOS: they have 0.32, digits 0.06.
EXPECTED = {
    "math500": 0.58,
    "gsm_symbolic": 0.54,
    "medical": 0.44,
    "chain_sum": 0.12,
    "figlet_font": 0.01,
}
MEDICAL = 20  # anatomy to college medicine; all 49 questions have 0.39, here and in plain transformers


def _write(folder: Path) -> dict[str, Path]:
    sets = {
        "gsm_symbolic": [
            (item["question"], item["metadata"]["answer_cot"])
            for item in create_dataset("gsm_symbolic", size=24, seed=42)
        ],
        "chain_sum": [
            (item["question"], item["answer"]) for item in create_dataset("chain_sum", size=24, seed=42)
        ],
        "figlet_font": [
            (item["question"], item["answer"])
            for item in create_dataset("figlet_font", size=8, seed=42, **FIGLET)
        ],
    }
    benchmark = ROOT.parent / "shared" / "data" / "math" / "math_oai.jsonl"  # where the project keeps it
    if benchmark.is_file():
        rows = [json.loads(line) for line in benchmark.read_text().splitlines()]
        sets["math500"] = [(row["problem"], row["solution"]) for row in rows]
    questions = (ROOT / "tests" / "data" / "medical_mmlu_reasoning.jsonl").read_text().splitlines()
    rows = map(json.loads, questions[:MEDICAL])
    sets["medical"] = [(row["prompt"], row["response"]) for row in rows]
    files = {}
    for name, pairs in sets.items():
        files[name] = folder / f"{name}.jsonl"
        lines = [json.dumps({"prompt": prompt, "response": response}) for prompt, response in pairs]
        files[name].write_text("\n".join(lines) + "\n")
    return files


@pytest.fixture(scope="module")
def read(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], dict[str, Reading]]:
    """TP, most samples of a set → what the probe reads, by set."""
    folder = tmp_path_factory.mktemp("sets")
    files = _write(folder)

    def reading(tp: int, most: int) -> dict[str, Reading]:
        config = config_for(
            folder / f"TP {tp}", smollm2, next(iter(files.values())), tensor_model_parallel_size=tp,
            seq_length=4096, data_cache_path=str(folder / "cache"),
        )  # fmt: skip
        config = config.replace(data=[str(file) for file in files.values()])
        of_sets = run_ranks(tp, run_probe, config, most)[0][: len(files)]
        return dict(zip(files, of_sets, strict=True))

    return reading


def test_the_order_and_the_values_that_are_known(read: Callable[[int, int], dict[str, Reading]]) -> None:
    mean_p = {name: reading.means.mean_p for name, reading in read(1, 24).items()}
    for name, found in mean_p.items():
        assert found == pytest.approx(EXPECTED[name], abs=0.05), mean_p
    assert mean_p["gsm_symbolic"] > mean_p["medical"] > mean_p["chain_sum"] > mean_p["figlet_font"]


def test_tensor_parallelism_changes_nothing(read: Callable[[int, int], dict[str, Reading]]) -> None:
    three = read(3, 4)
    for name, one in read(1, 4).items():
        assert three[name].means.tokens == one.means.tokens
        assert three[name].means.mean_p == pytest.approx(one.means.mean_p, abs=1e-4)
        assert three[name].means.nll == pytest.approx(one.means.nll, abs=1e-4)
        assert three[name].means.entropy == pytest.approx(one.means.entropy, abs=1e-4)
        assert three[name].median_p == pytest.approx(one.median_p, abs=2e-4)
