"""A process that simulates ranks one after the other: `python -m … JOB RESULT`, two JSON files.

JOB: {"settings": flat settings, "model": folder, "samples": `StepSamples`, "world_size", "ranks",
    "place": what computes}
RESULT: a list of `SimulatedRank`, in the order of the ranks
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from megatron_probsft.runtime.imports import fast_imports  # noqa: F401  # isort: skip

from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime.quiet import quiet_libraries
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate import kernel_stand_ins
from megatron_probsft.training.simulate.one_rank import simulate_rank
from megatron_probsft.training.simulate.step_samples import StepSamples


def main() -> None:
    quiet_libraries()
    job_file, result_file = map(Path, sys.argv[1:])
    job = json.loads(job_file.read_text())
    config = TrainConfig.of(**job["settings"])
    hf = read_hf_model(job["model"])
    samples = StepSamples(**job["samples"])
    kernel_stand_ins.apply(job["place"])
    ranks = [simulate_rank(config, hf, samples, rank, job["world_size"]) for rank in job["ranks"]]
    result_file.write_text(json.dumps([dataclasses.asdict(rank) for rank in ranks]))


if __name__ == "__main__":
    main()
