"""Tables of sweeps and of the continuum, from folders with known numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.continuum import run, summary
from megatron_probsft.experiments.arguments import read_command_line
from megatron_probsft.experiments.plan import Sweep, data_of
from megatron_probsft.experiments.results import collect, markdown, write
from megatron_probsft.runtime.errors import UserError

CONTINUUM = Path(run.__file__).parent


def finished_sweep(folder: Path, dataset: str, mean_p: float, seeds: tuple[str, ...] = ("1",)) -> Sweep:
    """All files of a finished sweep; objective i of seed k scored (i + k) / 10."""
    words = [
        "--dataset",
        dataset,
        "--model-save-name",
        "smollm2-135m",
        "--trainer-objective-trans",
        "original",
    ]
    sweep = read_command_line([*words, "p", "--seed", *seeds, "--output", str(folder)], "").sweep

    def put(file: Path, content: object) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    put(data_of(sweep) / "card.json", {"data_sources": [f"stand-in for {dataset}"]})
    reading = {"mean_p": mean_p, "median_p": 0.5, "nll": 2.0, "place": "somewhere"}
    put(sweep.folder / "probe" / "probe.json", {"readings": [{**reading, "mean_p": 0.0}, reading]})
    scores = [(sweep.base, 0.05)]
    for objective, seed, run_folder in sweep.runs:
        records = [
            {"kind": "validation", "iteration": 0, "nll": 3.0, "mean_p": 0.25},
            {"kind": "train", "iteration": 1, "nll": 9.0, "mean_p": 0.9},
            {"kind": "validation", "iteration": 1, "nll": 1.0 + seed, "mean_p": 0.75},
        ]
        put(run_folder / "megatron" / "summary.json", {"wall_seconds": 90.0})
        (run_folder / "megatron" / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        scores.append((run_folder, (sweep.objectives.index(objective) + seed) / 10))
    for where, accuracy in scores:
        average = {"jaro_winkler": 0.5} if dataset == "figfont" else {}
        interval = [accuracy / 2, accuracy + 0.1]
        score = {"accuracy": accuracy, "accuracy_ci95": interval, "n": 40, "samples": 1, "average": average}
        put(where / "score" / "summary.json", score)
    return sweep


def test_a_row_for_each_run_and_the_base_model(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, "math", 0.6)
    content = collect(sweep, data_of(sweep))
    base, original, p = content["rows"]
    assert (base["name"], base["accuracy"], base["heldout_nll"], base["heldout_mean_p"]) == (
        "base",
        0.05,
        3.0,
        0.25,
    )
    assert (original["name"], original["accuracy"], original["heldout_nll"]) == ("original", 0.1, 2.0)
    assert (p["accuracy"], p["training_minutes"]) == (0.2, 1.5)
    assert content["probe"]["mean_p"] == 0.6
    assert "means_over_seeds" not in content
    table = markdown(content)
    assert "| p | 2.000 | 0.750 | 20.0% | 10.0% to 30.0% | 40 × 1 | 1.5 |" in table
    assert "stand-in for math" in table
    write(content, sweep.folder)
    assert json.loads((sweep.folder / "results.json").read_text()) == content


def test_seeds_are_averaged(tmp_path: Path) -> None:
    sweep = finished_sweep(tmp_path, "figfont", 0.01, seeds=("1", "3"))
    content = collect(sweep, data_of(sweep))
    assert [row["name"] for row in content["rows"]] == [
        "base", "original, seed 1", "p, seed 1", "original, seed 3", "p, seed 3"
    ]  # fmt: skip
    original, p = content["means_over_seeds"]
    assert original["accuracy"] == pytest.approx((0.1 + 0.3) / 2)
    assert p["accuracy"] == pytest.approx((0.2 + 0.4) / 2)
    assert p["heldout_nll"] == pytest.approx((2 + 4) / 2)
    assert "accuracy_ci95" not in p
    assert "Jaro-Winkler" in markdown(content)


def test_the_continuum_goes_from_known_to_unknown(tmp_path: Path) -> None:
    results = []
    for dataset, mean_p in (("figfont", 0.01), ("math", 0.6), ("medical", 0.4)):
        sweep = finished_sweep(tmp_path, dataset, mean_p)
        results.append(
            collect(sweep, data_of(sweep)) | {"folder": dataset, "command": f"command of {dataset}"}
        )
    summary.write(tmp_path, results, 60.0)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert [domain["dataset"] for domain in content["domains"]] == ["math", "medical", "figfont"]
    text = (tmp_path / "report.md").read_text()
    rows = [line.split(" | ")[0] for line in text.splitlines() if line.startswith(("| m", "| f"))]
    assert rows == ["| math"] * 3 + ["| medical"] * 3 + ["| figfont"] * 3
    assert all(f"stand-in for {dataset}" in text for dataset in ("math", "medical", "figfont"))
    assert (tmp_path / "summary.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["cpu.yaml", "gpu.yaml"])
def test_recipes_are_sweeps_that_can_be_read(name: str, tmp_path: Path) -> None:
    recipe = run.read_recipe(CONTINUUM / name)
    assert list(recipe["domains"]) == ["math", "medical", "figfont"]
    for domain in recipe["domains"]:
        words = run.sweep_words(recipe, domain, tmp_path)
        sweep = read_command_line([word for word in words[2:] if word != "--run-script"], "").sweep
        assert sweep.objectives == ["original", "p", "GeneralFamily-10", "OnlyTopP-0.2"]
        assert sweep.train["lr"] == 3e-4


def test_a_recipe_with_another_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("output: x\n")
    with pytest.raises(UserError, match="must have the keys"):
        run.read_recipe(tmp_path / "recipe.yaml")
