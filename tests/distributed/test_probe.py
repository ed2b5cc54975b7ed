"""The probe against transformers in float64, at one process and at TP 2 × PP 2; and in the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_probsft.commands.probe import run as run_probe
from megatron_probsft.data.text.templates import encode_pair
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.probing.probe import advise
from tests.support.ranks import run_ranks
from tests.support.training_runs import config_for, train, write_pairs


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    return [str(write_pairs(folder / f"{seed}.jsonl", count, seed)) for seed, count in ((1, 30), (2, 7))]


def _expected(model: Path, file: str) -> tuple[np.ndarray, np.ndarray]:
    """p and the distribution's entropy at every supervised token."""
    tokenizer = load_tokenizer(model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    p, entropy = [], []
    for line in Path(file).read_text().splitlines():
        row = json.loads(line)
        tokens, trained = encode_pair(tokenizer, row["prompt"], row["response"], "chat")
        with torch.no_grad():
            log_p = torch.log_softmax(reference(torch.tensor([tokens])).logits[0], -1)
        for position in np.flatnonzero(trained):
            at = log_p[position - 1]
            p.append(float(at[tokens[position]].exp()))
            entropy.append(float(-(at.exp() * at).sum()))
    return np.array(p), np.array(entropy)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_readings(tp: int, pp: int, tiny_llama: Path, files: list[str], tmp_path: Path) -> None:
    layout: dict[str, Any] = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    config = config_for(tmp_path / "probe", tiny_llama, Path(files[0]), **layout)
    config = config.replace(data=files)
    for readings in run_ranks(tp * pp, run_probe, config, 100):
        assert [reading.source for reading in readings] == [*files, "all"]
        assert [reading.samples for reading in readings] == [30, 7, 37]
    both = [_expected(tiny_llama, file) for file in files]
    both.append(tuple(np.concatenate(parts) for parts in zip(*both, strict=True)))  # type: ignore[arg-type]
    for reading, (p, entropy) in zip(readings, both, strict=True):
        found = reading.record()
        assert found["supervised_tokens"] == len(p)
        assert found["mean_p"] == pytest.approx(p.mean(), rel=1e-5)
        assert found["nll"] == pytest.approx(-np.log(p).mean(), rel=1e-5)
        assert found["entropy"] == pytest.approx(entropy.mean(), rel=1e-5)
        assert found["median_p"] == pytest.approx(np.median(p), abs=2e-3)
        assert found["share_below_0.1"] == pytest.approx((p < 0.1).mean(), abs=1 / len(p))
        assert found["share_above_0.55"] == pytest.approx((p >= 0.55).mean(), abs=1 / len(p))
        assert found["place"] == advise(p.mean()).place


def test_a_part_of_the_samples_comes_from_all_over_the_file(
    tiny_llama: Path, files: list[str], tmp_path: Path
) -> None:
    rows = Path(files[0]).read_text().splitlines(keepends=True)
    part = tmp_path / "part.jsonl"
    part.write_text("".join(rows[i * 30 // 4] for i in range(4)))
    (few,) = run_ranks(1, run_probe, config_for(tmp_path / "few", tiny_llama, Path(files[0])), 4)
    (same,) = run_ranks(1, run_probe, config_for(tmp_path / "same", tiny_llama, part), 4)
    assert few[0].means.nll == pytest.approx(same[0].means.nll, rel=1e-6)


def test_the_trainer_probes_before_its_first_step(tiny_llama: Path, files: list[str], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"valid_data": files[:1], "probe_samples": 30, "train_iters": 2}
    records = train(2, config_for(tmp_path / "run", tiny_llama, Path(files[0]), **settings))
    (reading,) = json.loads((tmp_path / "run" / "probe.json").read_text())["readings"]
    assert reading["nll"] == pytest.approx(records[0]["nll"], rel=1e-5)  # of the same data, at step 0
    assert (tmp_path / "run" / "probe.png").stat().st_size > 1000
    without = train(2, config_for(tmp_path / "other", tiny_llama, Path(files[0]), **settings | {
        "probe_samples": None, "valid_data": []}))  # fmt: skip
    assert [r["loss"] for r in records if r["kind"] == "train"] == [r["loss"] for r in without]


def test_the_papers_domains_are_told_apart() -> None:
    assert [advise(p).place for p in (0.76, 0.81)] == ["model-strong"] * 2
    assert [advise(p).place for p in (0.50, 0.59)] == ["model-intermediate"] * 2
    assert [advise(p).place for p in (0.01, 0.07)] == ["model-weak"] * 2
