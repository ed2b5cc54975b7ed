"""Several engines side by side: which GPUs each has, which prompts, and what becomes of them all."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.evaluation.engines.devices import engine_devices
from megatron_probsft.evaluation.engines.engine import Decoding, EngineFacts
from megatron_probsft.evaluation.engines.vllm_runner import VllmRunner
from megatron_probsft.evaluation.request import Generation, Request
from megatron_probsft.runtime import device
from megatron_probsft.runtime.errors import UserError
from tests.unit.evaluation.test_errors import interpreter

# Generates each prompt's first token, once and for each sample; FAIL among the devices fails.
ENGINE = r"""
import json, os, sys, time
request = json.loads(open(sys.argv[2]).read())
with os.fdopen(int(sys.argv[4]), "w") as reports:
    say = lambda **report: (reports.write(json.dumps(report) + "\n"), reports.flush())
    say(engine={"dtype": "float32", "device": os.environ["CUDA_VISIBLE_DEVICES"], "vllm": "0"})
    if "FAIL" in os.environ["CUDA_VISIBLE_DEVICES"]:
        sys.exit("ValueError: no memory")
    print(os.environ["CUDA_VISIBLE_DEVICES"], request["prompts"])
    for index, seeds in enumerate(request["seeds"]):
        for sample, seed in enumerate(seeds):
            say(finished=[index, sample, [request["prompts"][index][0], seed], "stop"])
if "SLOW" in os.environ["CUDA_VISIBLE_DEVICES"]:
    time.sleep(600)
seconds = {"startup_seconds": 1.0, "generation_seconds": len(request["seeds"])}
open(sys.argv[3], "w").write(json.dumps(seconds))
"""


class Kept:
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.engines: list[EngineFacts] = []
        self.generations: dict[tuple[int, int], list[int]] = {}

    def started(self, engine: EngineFacts) -> None:
        self.engines.append(engine)

    def finished(self, request: Request, generation: Generation) -> None:
        self.generations[request.problem.index, request.sample] = [*generation.tokens]


def requests(prompts: int, samples: int) -> list[Request]:
    return [
        Request(Problem("a", str(place), place, "one", "two", "row"), sample, [100 + place], 2, seed=sample)
        for place in range(prompts)
        for sample in range(samples)
    ]


def test_each_prompt_is_generated_once_by_one_of_the_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path, ENGINE, monkeypatch)
    runner, kept = VllmRunner(tmp_path, tmp_path / "vllm.log", 8, devices=["0,1", "2,3", "4,5"]), Kept()
    seconds = runner.generate(requests(7, 2), Decoding([0]), kept)
    assert kept.generations == {
        (place, sample): [100 + place, sample] for place in range(7) for sample in (0, 1)
    }
    assert len(kept.engines) == 1
    assert seconds.generation == 3  # of seven prompts the first engine has three
    logs = [(tmp_path / name).read_text() for name in ("vllm.log", "vllm-1.log", "vllm-2.log")]
    assert logs == ["0,1 [[100], [103], [106]]\n", "2,3 [[101], [104]]\n", "4,5 [[102], [105]]\n"]


def test_more_engines_than_prompts_are_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interpreter(tmp_path, ENGINE, monkeypatch)
    runner, kept = VllmRunner(tmp_path, tmp_path / "vllm.log", 8, devices=list("0123")), Kept()
    runner.generate(requests(2, 3), Decoding([0]), kept)
    assert len(kept.generations) == 6
    assert sorted(file.name for file in tmp_path.glob("*.log")) == ["vllm-1.log", "vllm.log"]


def test_one_that_fails_ends_all_and_what_is_finished_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter(tmp_path, ENGINE, monkeypatch)
    runner, kept = VllmRunner(tmp_path, tmp_path / "vllm.log", 8, devices=["SLOW", "FAIL"]), Kept()
    with pytest.raises(
        UserError, match=r"vLLM ended with status 1, ValueError: no memory \(log: .*vllm-1.log\)"
    ):
        runner.generate(requests(4, 1), Decoding([0]), kept)
    assert not subprocess.run(["pgrep", "-f", str(tmp_path / "python")], capture_output=True).stdout
    assert {place for place, _ in kept.generations} <= {0, 2}


@pytest.mark.parametrize(
    ("gpus", "visible", "tensor", "data", "expected"),
    [
        (0, None, 1, None, [None]),
        (0, None, 1, 2, [None, None]),
        (0, None, 2, None, [None]),
        (1, None, 1, None, [None]),
        (8, None, 1, None, list("01234567")),
        (8, None, 2, None, ["0,1", "2,3", "4,5", "6,7"]),
        (3, "5,6,GPU-7f", 1, None, ["5", "6", "GPU-7f"]),
        (8, None, 8, None, [None]),
        (8, None, 1, 2, ["0", "1"]),
        (4, None, 3, None, [None]),
    ],
)
def test_every_gpu_has_an_engine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, visible: str | None, tensor: int, data: int | None,
    expected: object,
) -> None:  # fmt: skip
    monkeypatch.setattr(device, "gpu_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert engine_devices(tensor, data) == expected


@pytest.mark.parametrize(
    ("gpus", "tensor", "data", "message"),
    [
        (2, 4, None, "--tensor-parallel-size 4: this process may use 2 GPU"),
        (4, 2, 3, r"--data-parallel-size 3 × --tensor-parallel-size 2 take 6 GPUs: this process may use 4"),
    ],
)
def test_more_gpus_than_there_are_are_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: int, tensor: int, data: int | None, message: str
) -> None:
    monkeypatch.setattr(device, "gpu_count", lambda: gpus)
    with pytest.raises(UserError, match=message):
        engine_devices(tensor, data)
