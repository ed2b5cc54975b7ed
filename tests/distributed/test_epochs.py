"""Every sample once per epoch, in one order, however often the run is cut and on however many ranks."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.runtime import distributed
from megatron_probsft.training import loop
from tests.support.training_runs import config_for, train, write_pairs

SAMPLES, EPOCHS, BATCH = 22, 3, 8


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", SAMPLES)


def _seen(
    ranks: int, cuts: list[int], model: Path, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[int, Counter]:
    """The token sequences that each step trained on, counted over all ranks."""
    original = loop.train_step
    seen = folder.with_name(folder.name + "_seen")
    seen.mkdir()

    def recording(state: Any, batch: Any, criterion: Any) -> Any:
        samples = []
        for micro_batch in batch.micro_batches:
            bounds = micro_batch.cu_seqlens.tolist()
            tokens = micro_batch.tokens[0].tolist()
            samples += [tokens[a:b] for a, b in itertools.pairwise(bounds)]
        with (seen / str(distributed.rank())).open("a") as stream:
            stream.write(json.dumps([state.iteration, samples]) + "\n")
        return original(state, batch, criterion)

    settings: dict[str, Any] = {"train_epochs": float(EPOCHS), "save_optim": True, "global_batch_size": BATCH}
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", recording)
        for cut in [*cuts, None]:
            train(ranks, config_for(folder, model, data, load=str(folder), exit_interval=cut, **settings))
    steps: dict[int, Counter] = {}
    for file in seen.iterdir():
        for iteration, samples in map(json.loads, file.read_text().splitlines()):
            steps.setdefault(iteration, Counter()).update(
                # A pack's padding is a sequence of one repeated token.
                tuple(sample)
                for sample in samples
                if len(set(sample)) > 1
            )
    return steps


@pytest.mark.size("test")
def test_every_sample_once_per_epoch(
    tiny_llama: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [
        _seen(ranks, cuts, tiny_llama, data, tmp_path / f"{ranks} {cuts}", monkeypatch)
        for ranks, cuts in ((1, []), (1, [2, 5, 6]), (2, [3]), (4, [1, 4]))
    ]
    assert len(orders[0]) == -(-SAMPLES * EPOCHS // BATCH)
    assert all(order == orders[0] for order in orders[1:])
    total = sum(orders[0].values(), Counter())
    assert len(total) == SAMPLES
    assert set(total.values()) == {EPOCHS}
    # 22 samples in steps of 8: the third step ends the first epoch with its first six.
    first_epoch = sum((orders[0][step] for step in (0, 1)), Counter())
    assert max(first_epoch.values()) == 1
    assert set(sum((orders[0][step] for step in (0, 1, 2)), Counter())) == set(total)
