"""With one seed a step's loss is the same whatever the pack's length, packing and the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.support.tiny_models import save_tiny_model
from tests.support.training_runs import config_for, train, write_pairs

SHAPES: dict[str, dict[str, Any]] = {
    "512": {"seq_length": 512},
    "2048": {"seq_length": 2048},
    "no packing": {"seq_length": 512, "packing": False, "micro_batch_size": 2},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some samples of over 256 positions, so that a step of 24 is several packs of 512 and one of 2048."""
    folder = tmp_path_factory.mktemp("data")
    file = write_pairs(folder / "train.jsonl", 40)
    long = write_pairs(folder / "long.jsonl", 400, seed=1).read_text().splitlines()
    rows = [
        row.replace('"response": "', '"response": "' + "it is three " * (7 * n))
        for n, row in enumerate(long[:12])
    ]
    file.write_text(file.read_text() + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 2048 positions."""
    folder = save_tiny_model(tmp_path_factory.mktemp("wide") / "llama")
    config = AutoConfig.from_pretrained(folder)
    config.max_position_embeddings = 2048
    config.save_pretrained(folder)
    return folder


@pytest.mark.size("test")
def test_loss_is_the_same_in_every_shape(wide: Path, data: Path, tmp_path: Path) -> None:
    runs = {}
    for name, settings in SHAPES.items():
        for ranks in (1, 2):
            config = config_for(
                tmp_path / f"{name} {ranks}",
                wide,
                data,
                global_batch_size=24,
                lr=1e-3,
                train_iters=4,
                **settings,
            )
            runs[name, ranks] = train(ranks, config)
    expected = runs["2048", 1]
    assert len(expected) == 4
    for shape, records in runs.items():
        for record, reference in zip(records, expected, strict=True):
            for key in ("loss", "grad_norm"):
                assert record[key] == pytest.approx(reference[key], rel=1e-5), (shape, key)
    packs = {
        shape: (records[0]["micro_batches"], records[0]["pack_length"]) for shape, records in runs.items()
    }
    assert packs["2048", 1][0] == 1
    assert packs["512", 1][0] > packs["512", 2][0] > 1
    assert len(set(packs.values())) == len(packs), "the shapes differ"
