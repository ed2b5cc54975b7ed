"""Throughput that others measured, against what the time model gives for the same layout and batch.

    python -m benchmarks.scaling.published

The ratio is ours ÷ theirs: above 1 the time model promises more than they got. Their programs are not ours;
what differs is in the note. FSDP stands as data parallelism with the distributed optimizer, whose
communication is of the same size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks.scaling.models import MODELS
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate.report import SimulatedStep
from megatron_probsft.training.simulate.step_samples import full_packs
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.throughput.cards import CARDS, GpuCard
from megatron_probsft.training.throughput.step_counts import counted_step
from megatron_probsft.training.throughput.time_model import Machine, real_tokens, step_time
from megatron_probsft.training.throughput.workload import plan_workload

_MEGATRON_BRIDGE = "Megatron-Bridge docs/performance-summary-archive.md at 067f987"
_NEMO = "NeMo docs/source/performance/performance_summary.md at 070a0bb (container 24.07)"
_TITAN = "torchtitan benchmarks/ at b5bcd76"
_AUTOMODEL = "NeMo Automodel docs/performance-summary.mdx at 36044ad"
_FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
# H100s of Meta's Grand Teton: 96 GB HBM2e, 2.4 TB/s, 500 W instead of 700 W.
_GRAND_TETON = dataclasses.replace(CARDS["h100-80gb"], memory_gib=96, memory_bandwidth=2.4e12)


@dataclass(frozen=True)
class Published:
    """One measured run."""

    name: str
    model: str
    gpus: int
    samples: int
    """In a step."""
    length: int
    tokens_per_second_per_gpu: float
    source: str
    fp8: bool = True
    documents: int | None = None
    """The mean length of the documents in a packed sample; None: a sample is one document."""
    layout: dict[str, Any] = field(default_factory=dict)
    card: GpuCard = CARDS["h100-80gb"]
    note: str = ""
    tp_overlap: bool = False
    linear: float = 1.0
    """The products that are computed ÷ those of full training: 2/3 where weights get no gradient (LoRA)."""


def _layout(tp: int = 1, pp: int = 1, vpp: int | None = None, cp: int = 1) -> dict[str, Any]:
    return {
        "tensor_model_parallel_size": tp, "sequence_parallel": tp > 1, "pipeline_model_parallel_size": pp,
        "num_virtual_stages_per_pipeline_rank": vpp, "context_parallel_size": cp,
    }  # fmt: skip


# SQuAD's questions with their contexts are about 200 tokens; NeMo counts 39.8 GFLOP per token for the first.
_SQUAD = 200
PUBLISHED = [
    Published("NeMo 24.12, SFT", "Llama-2-7B", 8, 32, 4096, 16891, "NeMo user guide 24.12", documents=_SQUAD),
    Published("NeMo 24.07, SFT", "Llama-2-13B", 8, 32, 4096, 9741, _NEMO, documents=_SQUAD,
              layout=_layout(pp=4, vpp=10), note="VPP is not stated: 10, as in its pre-training"),
    Published("NeMo 24.07, SFT", "Llama-2-70B", 16, 32, 4096, 1833, _NEMO, documents=_SQUAD,
              layout=_layout(4, 4, 20), tp_overlap=True,
              note="VPP is not stated: 20, as in its pre-training"),
    Published("Megatron-Bridge 26.06, SFT", "Llama-3.1-70B", 32, 32, 4096, 1638, _MEGATRON_BRIDGE,
              documents=_SQUAD, layout=_layout(4, 4, 5), tp_overlap=True),
    Published("Megatron-Bridge 25.11", "Llama-3.1-8B", 8, 128, 8192, 14451, _MEGATRON_BRIDGE, note="FSDP"),
    Published("Megatron-Bridge 25.11", "Llama-3.1-70B", 64, 128, 8192, 1602, _MEGATRON_BRIDGE,
              layout=_layout(4, 8, 5), tp_overlap=True),
    Published("Megatron-Bridge 25.11", "Llama-3.1-8B", 8, 128, 8192, 30624, _MEGATRON_BRIDGE,
              card=CARDS["b200"]),
    Published("Llama 3 paper, table 4", "Llama-3.1-405B", 8192, 2048, 8192, 169, "arXiv 2407.21783",
              fp8=False, layout=_layout(8, 16, 8)
              | {"decoder_first_pipeline_num_layers": 7, "decoder_last_pipeline_num_layers": 7},
              note="pre-training, 430 TFLOP/s ÷ 2.54 TFLOP per token; VPP is not stated: 8"),
    Published("torchtitan 2024-12, 8 GPUs", "Llama-3.1-8B", 8, 16, 8192, 6667, _TITAN, fp8=False,
              card=_GRAND_TETON, layout={"micro_batch_size": 2},
              note="FSDP, half of the layers' products computed again, 500 W", linear=7 / 6),
    Published("torchtitan 2024-12, 128 GPUs", "Llama-3.1-8B", 128, 256, 8192, 6514, _TITAN, fp8=False,
              card=_GRAND_TETON, layout={"micro_batch_size": 2},
              note="FSDP, half of the layers' products computed again, 500 W", linear=7 / 6),
    Published("torchtitan 2024-12, 8 GPUs", "Llama-3.1-8B", 8, 16, 8192, 8532, _TITAN, card=_GRAND_TETON,
              layout={"micro_batch_size": 2},
              note="FSDP, half of the layers' products computed again, 500 W", linear=7 / 6),
    Published("torchtitan 2025-06", "Llama-3.1-8B", 64, 96, 8192, 4378, _TITAN, fp8=False,
              card=_GRAND_TETON, layout=_layout(8) | {"micro_batch_size": 12},
              note="FSDP 8 × TP 8, half of the products again, 500 W", linear=7 / 6),
    Published("torchtitan 2025-06", "Llama-3.1-70B", 256, 512, 8192, 597, _TITAN, fp8=False,
              card=_GRAND_TETON, layout=_layout(8) | _FULL | {"micro_batch_size": 16},
              note="FSDP 32 × TP 8, all computed again, 500 W"),
    Published("NeMo Automodel, LoRA", "Llama-3.1-8B", 1, 32, 4096, 12473, _AUTOMODEL, fp8=False,
              layout={"micro_batch_size": 2}, note="LoRA: weights get no gradient", linear=2 / 3),
    Published("NeMo Automodel, LoRA", "Qwen2.5-7B", 1, 32, 4096, 14110, _AUTOMODEL, fp8=False,
              layout={"micro_batch_size": 2}, note="LoRA: weights get no gradient", linear=2 / 3),
    Published("NeMo Automodel", "Llama-3.1-70B", 64, 128, 8192, 867, _AUTOMODEL, fp8=False,
              layout=_layout(cp=2), note="FSDP"),
]  # fmt: skip


def estimated(run: Published) -> float:
    """Return the time model's tokens per second and GPU for a published run."""
    model = MODELS[run.model]
    config = TrainConfig.of(
        seq_length=run.length, global_batch_size=run.samples, train_iters=1, **run.layout,
    )  # fmt: skip
    config = by_device(config, None, run.gpus, gpu=True)
    layout = config.layout
    dp = layout.data_parallel_size(run.gpus)
    workload = plan_workload(full_packs(config), config.batch, layout, dp)
    if run.documents:
        share = run.documents / run.length
        sequences = (run.documents,) * round(1 / share)
        workload = dataclasses.replace(workload, squares=workload.squares * share, sequences=sequences)
    step = counted_step(config, model.family, model.shape, workload)
    time = step_time(_part(step, run.linear), config, model.shape, Machine(run.card, run.fp8, run.tp_overlap))
    return real_tokens(step) / time.total / run.gpus


def _part(step: SimulatedStep, linear: float) -> SimulatedStep:
    stages = [
        dataclasses.replace(
            stage, flops=dataclasses.replace(stage.flops, linear=int(stage.flops.linear * linear))
        )
        for stage in step.stages
    ]
    return dataclasses.replace(step, stages=tuple(stages))


def table() -> str:
    """Return the runs, what they measured and the ratio, as Markdown."""
    lines = [
        "| measured by | model | GPUs | products | theirs, tok/s/GPU | ours, estimated | ratio | differs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in PUBLISHED:
        ours = estimated(run)
        card = "B200" if run.card.name == "b200" else "H100"
        lines.append(
            f"| {run.name} | {run.model} | {run.gpus} × {card} | {'FP8' if run.fp8 else 'bf16'} "
            f"| {run.tokens_per_second_per_gpu:,.0f} | {ours:,.0f} "
            f"| {ours / run.tokens_per_second_per_gpu:.2f} | {run.note} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table())
