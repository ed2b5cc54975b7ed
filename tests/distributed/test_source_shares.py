"""--data-weights: one order at any number of ranks and wherever it is cut; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.batches import Batches
from megatron_probsft.training.config.arguments import parse_arguments
from megatron_probsft.training.start.inputs import find_model, read_inputs
from megatron_probsft.training.start.problems import Problems
from tests.support.ranks import run_ranks
from tests.support.training_runs import config_for, records, train, write_pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [str(write_pairs(folder / f"{n}.jsonl", n, seed=n)) for n in (20, 7)]


def _config(folder: Path, model: Path | None, files: list[str], **settings: Any) -> Any:
    weights = settings.pop("data_weights", [0.25, 0.75])
    config = config_for(folder, model, Path(files[0]), **{"save_optim": True, **settings})
    return config.replace(data=files, data_weights=weights)


@pytest.mark.size("test")
def test_one_order_on_every_layout_and_over_interruptions(
    tiny_llama: Path, files: list[str], tmp_path: Path
) -> None:
    def run(name: str, ranks: int, *cuts: int, **settings: Any) -> list[tuple[float, float]]:
        folder = tmp_path / name
        for cut in (*cuts, None):
            load = {"load": str(folder)}
            train(
                ranks,
                _config(folder, tiny_llama, files, exit_interval=cut, train_iters=5, **load, **settings),
            )
        return [(record["loss"], record["grad_norm"]) for record in records(folder, "train")]

    whole = run("whole", 1)
    assert len(whole) == 5
    for other in (run("cut", 1, 2, 3), run("two", 2, 3), run("unpacked", 2, packing=False)):
        for step, expected in zip(other, whole, strict=True):
            assert step == pytest.approx(expected, rel=1e-5)
    unweighted = run("unweighted", 1, data_weights=None)
    assert unweighted[0] != whole[0]


def _check_passes_in_order(config: Any) -> None:
    """For the first and the second source: of each step (samples, its tokens without padding)."""
    distributed.initialize()
    store = read_inputs(config, find_model(config, Problems())).train
    batches = Batches(store, config.batch, config.layout, (0, 1))
    passes = []
    for source in (0, 1):
        steps = []
        for batch in batches.in_order(source):
            tokens = [token for micro in batch.micro_batches for token in micro.tokens[0].tolist() if token]
            steps.append((batch.samples, sorted(tokens)))
        assert len(steps) == batches.steps_in_order(source)
        passes.append(steps)
    inputs = [store.sample(index)[0][:-1].tolist() for index in range(len(store))]

    def step(first: int, end: int) -> tuple[int, list[int]]:
        return end - first, sorted(token for sample in inputs[first:end] for token in sample if token)

    assert passes == [[step(0, 8), step(8, 16), step(16, 20)], [step(20, 27)]]


def test_a_source_alone_in_its_order(tiny_llama: Path, files: list[str], tmp_path: Path) -> None:
    config = _config(tmp_path / "run", tiny_llama, files).replace(data_weights=None)
    run_ranks(1, _check_passes_in_order, config)


def test_an_epoch_is_as_many_samples_as_there_are(tiny_llama: Path, files: list[str], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train_epochs": 2.0, "save_optim": False, "valid_data": [files[1]]}
    train(1, _config(tmp_path / "run", tiny_llama, files, **settings))
    assert len(records(tmp_path / "run", "train")) == 7  # 2 × 27 samples in steps of 8
    assert len(records(tmp_path / "run", "validation")) == 2


def test_other_weights_are_refused_on_resume(tiny_llama: Path, files: list[str], tmp_path: Path) -> None:
    train(1, _config(tmp_path / "run", tiny_llama, files, exit_interval=1))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for weights in ([0.5, 0.5], None):
        config = _config(tmp_path / "run", None, files, load=str(tmp_path / "run"), data_weights=weights)
        with pytest.raises(UserError, match=r"--data-weights was \[0.25, 0.75\] in .* and is now"):
            train(1, config)
    config = _config(
        tmp_path / "run", None, files, load=str(tmp_path / "run"), data_weights=[0.5, 0.5],
        allow_changed=["data-weights"],
    )  # fmt: skip
    train(1, config)
    again = _config(tmp_path / "copy", None, files, load=str(tmp_path / "copy"))
    train(1, again)
    changed, same = (records(tmp_path / name, "train") for name in ("run", "copy"))
    assert changed[0]["loss"] == same[0]["loss"]
    assert changed[1]["loss"] != same[1]["loss"]


def test_weights_that_do_not_fit_are_refused(tiny_llama: Path, files: list[str], tmp_path: Path) -> None:
    flags = ["--hf-model", "m", "--data", *files, "--save", str(tmp_path / "run"), "--train-iters", "1"]
    assert parse_arguments([*flags, "--data-weights", "0.7", "3"]).data.data_weights == [0.7, 3.0]
    for weights in (["1"], ["1", "0"], ["1", "nan"], ["1", "inf"], ["1", "-1"], ["1", "1", "1"]):
        with pytest.raises(
            UserError, match="--data-weights takes a number above 0 for each of the 2 of --da"
        ):
            parse_arguments([*flags, "--data-weights", *weights])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data_weights: [0.5, 2]\n")
    assert parse_arguments([*flags, "--config", str(recipe)]).data.data_weights == [0.5, 2.0]
    recipe.write_text("data_weights: [0.5, many]\n")
    with pytest.raises(UserError, match=r"data_weights should hold floats, got \[0.5, 'many'\]"):
        parse_arguments([*flags, "--config", str(recipe)])
    long = tmp_path / "long.jsonl"
    long.write_text('{"prompt": "one", "response": "' + "two " * 200 + '"}\n')
    config = _config(tmp_path / "run", tiny_llama, [files[0], str(long)], truncation="drop")
    with pytest.raises(UserError, match=r"long\.jsonl: none of its samples is left at --seq-length 128, but"):
        train(1, config)
