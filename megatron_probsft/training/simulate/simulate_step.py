"""A step of a run on any number of processes, simulated in processes of its own, stage by stage."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate.report import SimulatedStep
from megatron_probsft.training.simulate.stages import (
    SimulatedRank,
    all_stages,
    rank_from_json,
    stages_to_simulate,
)
from megatron_probsft.training.simulate.step_samples import StepSamples

_ALWAYS = (
    "Layers are those of CUDA without Transformer Engine, with liger-kernel. Attention keeps query, key, "
    "value, output and a log-sum-exp per row; RMSNorm its input and a number per row; SwiGLU its input.",
    "Memory is that of tensors: CUDA's context, NCCL's buffers, the allocator's gaps and what kernels use "
    "while they run come on top.",
)
_UNPACKED = "With --no-packing every sample counts as if it were as long as the longest of its step."
_PROCESSES = 4
"""Each takes about 0.8 GiB."""


_OF_ENGINE = ("layernorm", "moe_act")
"""Modules that are recomputed with Transformer Engine alone."""


def simulate_step(config: TrainConfig, folder: Path, samples: StepSamples, world_size: int) -> SimulatedStep:
    """Return what one step of a run on `world_size` processes takes, by pipeline stage.

    One rank of each stage that is unlike the others is built and run on fake tensors, in at most four child
    processes; it takes no GPU, no weights and under 1 GiB of memory for each child.

    Args:
        folder: the Hugging Face folder of the model; its config.json alone is read.
        samples: of the step, over all ranks.

    Raises:
        RuntimeError: a child failed, with what it said.
    """
    layout = config.layout
    each = world_size // layout.pipeline_model_parallel_size
    ranks = [stage * each for stage in stages_to_simulate(layout)]  # Megatron-Core's order: stages outermost
    count = min(len(ranks), os.cpu_count() or 1, _PROCESSES)
    job = {
        "settings": _without_engine(config).flat(),
        "model": str(folder),
        "samples": dataclasses.asdict(samples),
        "world_size": world_size,
        "place": "cuda",
    }
    with ThreadPoolExecutor(count) as pool:
        shares = pool.map(_run, [job | {"ranks": ranks[first::count]} for first in range(count)])
        simulated = [rank for share in shares for rank in share]
    first = simulated[0]
    return SimulatedStep(
        world_size=world_size,
        data_parallel_size=layout.data_parallel_size(world_size),
        micro_batches=first.micro_batches,
        pack_length=first.pack_length,
        sequence_lengths=tuple(first.sequence_lengths),
        supervised_tokens=first.supervised_tokens,
        real_tokens_share=first.real_tokens_share,
        bf16=bool(config.precision.bf16),
        stages=all_stages(simulated, layout, first.micro_batches),
        assumptions=tuple(_assumptions(config)),
    )


def _without_engine(config: TrainConfig) -> TrainConfig:
    """Return the settings that layers without Transformer Engine can have."""
    config = config.replace(loss_kernels="auto", fp8_format=None, fp8_recipe=None, tp_comm_overlap=False)
    given = config.layout.recompute_modules
    left = [name for name in given if name not in _OF_ENGINE]
    if given and not left:
        config = config.replace(recompute_granularity=None)
    return config.replace(recompute_modules=left)


def _assumptions(config: TrainConfig) -> Iterator[str]:
    yield f"Weights and computation are in {'bfloat16' if config.precision.bf16 else 'float32'}."
    yield from _ALWAYS
    if config.precision.fp8_format is not None:
        yield (
            "FP8 is Transformer Engine's: memory, operations and transfers are those of layers in bfloat16, "
            "without the weights' FP8 copies."
        )
    for name in _OF_ENGINE:
        if name in config.layout.recompute_modules:
            yield f"--recompute-modules {name} needs Transformer Engine: its activations are counted as kept."
    if config.kernels.tp_comm_overlap:
        yield "Buffers of --tp-comm-overlap, which is Transformer Engine's, are left out."
    if not config.batch.packing:
        yield _UNPACKED


def _run(job: dict[str, Any]) -> list[SimulatedRank]:
    hidden = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # a launcher's, of this process
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {
        "CUDA_VISIBLE_DEVICES": "",  # fake tensors lie on the CPU
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with tempfile.TemporaryDirectory() as folder:
        job_file, result_file = Path(folder) / "job.json", Path(folder) / "result.json"
        job_file.write_text(json.dumps(job))
        done = subprocess.run(
            [sys.executable, "-m", "megatron_probsft.training.simulate.child", job_file, result_file],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the simulation failed:\n{done.stderr}")
        return [rank_from_json(record) for record in json.loads(result_file.read_text())]
