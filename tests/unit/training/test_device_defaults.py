"""Settings whose default follows from the device: on CUDA fast ones, on the CPU those of before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnBackend

from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.runtime.megatron_patches import weight_gradient_fusion
from megatron_probsft.training import state
from megatron_probsft.training.config import rules
from megatron_probsft.training.config.config import TrainConfig, settings
from megatron_probsft.training.config.rules import group_problems
from megatron_probsft.training.start.compare_runs import compare_runs
from megatron_probsft.training.start.device_defaults import by_device

TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
SHARDED, REDUCE, GATHER = "use_distributed_optimizer", "overlap_grad_reduce", "overlap_param_gather"
PLAIN = {"bf16": False, SHARDED: False, REDUCE: False, GATHER: False, "gradient_accumulation_fusion": False}
ONE_GPU = PLAIN | {"bf16": True, "gradient_accumulation_fusion": True}
GPUS = dict.fromkeys(PLAIN, True)

CASES: list[tuple[dict[str, Any], bool, int, dict[str, Any]]] = [
    # given, with GPUs, processes, what comes of it
    ({}, False, 8, PLAIN | {"make_vocab_size_divisible_by": 1, "loss_chunk_tokens": 4096}),
    ({TP: 2}, False, 8, PLAIN | {"make_vocab_size_divisible_by": 1, "loss_chunk_tokens": 4096}),
    ({}, True, 1, ONE_GPU | {"make_vocab_size_divisible_by": 128, "loss_chunk_tokens": 8192}),
    ({}, True, 8, GPUS),
    ({TP: 4}, True, 8, GPUS | {"make_vocab_size_divisible_by": 128, "loss_chunk_tokens": 32768}),
    ({TP: 4, PP: 2}, True, 8, ONE_GPU),
    ({"context_parallel_size": 2}, True, 2, GPUS),
    ({"bf16": False, "loss_chunk_tokens": 7}, True, 8, GPUS | {"bf16": False, "loss_chunk_tokens": 7}),
    ({REDUCE: False}, True, 8, GPUS | {REDUCE: False, GATHER: False}),
    ({SHARDED: False}, True, 8, GPUS | {SHARDED: False, GATHER: False}),
    ({GATHER: False}, True, 8, GPUS | {GATHER: False}),
    ({GATHER: True}, True, 1, GPUS),
]


@pytest.mark.parametrize(("given", "gpu", "processes", "expected"), CASES, ids=str)
def test_what_follows_from_the_device(
    given: dict[str, Any], gpu: bool, processes: int, expected: dict[str, Any]
) -> None:
    config = by_device(TrainConfig.of(**given), None, processes, gpu=gpu)
    assert {name: config.value(name) for name in expected} == expected
    open_ones = [name for name, one in settings().items() if one.flag.by_device]
    assert not [name for name in open_ones if config.value(name) is None]
    assert by_device(config, None, 1, gpu=not gpu) == config


def test_a_resumed_run_keeps_what_it_began_with(tmp_path: Path) -> None:
    """Also an old one, whose file lacks newer settings; and another value than the saved one is refused."""
    before = {"lr": 5e-5, "bf16": False, SHARDED: False}
    (tmp_path / "train_config.yaml").write_text(yaml.safe_dump(before))
    for gpu in (True, False):
        config = by_device(TrainConfig(), tmp_path, 8, gpu=gpu)
        assert config.precision.bf16 is False
        assert config.layout.use_distributed_optimizer is gpu  # its states load either way
    assert not [line for line in compare_runs(tmp_path, TrainConfig())[1] if "--bf16" in line]
    (told,) = [line for line in compare_runs(tmp_path, TrainConfig.of(bf16=True))[1] if "--bf16" in line]
    assert told.startswith(f"--bf16 was False in {tmp_path} and is now True: give the same, or --finetune")


FOR_GPUS = {
    # settings, what is said of them on a CPU, and where there is a GPU with Transformer Engine
    "fp8": ({"fp8_format": "hybrid"}, "--fp8-format needs a CUDA device and Transformer Engine", None),
    "recipe": ({"fp8_recipe": "mxfp8"}, "--fp8-recipe belongs to --fp8-format", "--fp8-recipe belongs to"),
    "fp8, fp32": ({"fp8_format": "hybrid", "bf16": False}, None, "--fp8-format needs --bf16"),
    "fp8, unpacked": ({"fp8_format": "e4m3", "packing": False}, None, "--fp8-format needs packs"),
    "attention": ({"attention_backend": "fused"}, "--attention-backend fused needs a CUDA device", None),
    "fusion": ({"gradient_accumulation_fusion": True}, "--gradient-accumulation-fusion needs a CUDA", None),
    "tp, no sp": ({"tp_comm_overlap": True}, "--tp-comm-overlap needs --sequence-parallel", "--tp-comm"),
    "tp, no length": (
        {"tp_comm_overlap": True, "sequence_parallel": True},
        "--tp-comm-overlap needs --fixed-pack-length",
        "--tp-comm-overlap needs --fixed-pack-length",
    ),
    "tp": (
        {"tp_comm_overlap": True, "sequence_parallel": True, "fixed_pack_length": True},
        "--tp-comm-overlap needs a CUDA device",
        None,
    ),
    "graphs": ({"cuda_graph_impl": "local"}, "--cuda-graph-impl local: CUDA graphs replay", "--cuda-graph"),
    "bucket": ({"ddp_bucket_size": 9}, "--ddp-bucket-size needs --overlap-grad-reduce", None),
    "gather": ({GATHER: True}, "--overlap-param-gather needs --use-distributed-optimizer", None),
    "gather only": ({GATHER: True, REDUCE: False}, "--overlap-param-gather", "--overlap-param-gather needs"),
    "recomputed": (
        {"recompute_granularity": "selective", "recompute_modules": ["mlp", "core_atn"]},
        "--recompute-modules core_atn is none of core_attn, layernorm, mlp, moe, moe_act; did you mean core_",
        "--recompute-modules core_atn",
    ),
    "norms again": (
        {"recompute_granularity": "selective", "recompute_modules": ["layernorm"]},
        "--recompute-modules layernorm needs a CUDA device and Transformer Engine",
        None,
    ),
    "what": ({"recompute_modules": ["mlp"]}, "--recompute-modules needs --recompute-granularity", "--recomp"),
}


@pytest.mark.parametrize("case", FOR_GPUS)
def test_settings_for_gpus_are_refused_where_they_cannot_work(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, on_cpu, on_gpu = FOR_GPUS[case]
    for name in ("FLASH", "FUSED", "UNFUSED"):
        monkeypatch.delenv(f"NVTE_{name}_ATTN", raising=False)

    def problems() -> list[str]:
        config = TrainConfig.of(**given)
        return [
            line for group in ("layout", "kernels", "precision") for line in group_problems(config, group)
        ]

    if on_cpu:
        assert problems()[0].startswith(on_cpu)
    monkeypatch.setattr(rules, "_has_gpu", lambda: True)
    monkeypatch.setattr(rules, "_lacks_transformer_engine", lambda _: False)
    assert [line.startswith(on_gpu or "never") for line in problems()[:1]] == [True] * (on_gpu is not None)


ELSEWHERE: dict[str, tuple[dict[str, Any], str | None]] = {
    # of GPUs that a dry run without one is for: settings, and what is said of them
    "Transformer Engine's": (
        {
            "fp8_format": "hybrid", "attention_backend": "fused", "tp_comm_overlap": True,
            "sequence_parallel": True, "fixed_pack_length": True, "gpu": "h100-80gb",
        },
        None,
    ),
    "fp32": ({"bf16": False}, None),
    "fp32, timed": ({"bf16": False, "gpu": "h100-80gb"}, "--gpu estimates a run in bfloat16"),
    "fp8, A100": ({"fp8_format": "e4m3", "gpu": "a100-80gb"}, "--fp8-format: --gpu a100-80gb has no FP8"),
}  # fmt: skip


@pytest.mark.parametrize("case", ELSEWHERE)
def test_a_dry_run_asks_what_its_gpus_have_not_what_is_here(case: str) -> None:
    given, told = ELSEWHERE[case]
    config = TrainConfig.of(dry_run=True, world_size=8, **given)
    problems = [line for group in ("kernels", "precision") for line in group_problems(config, group)]
    assert [line.startswith(told or "never") for line in problems] == [True] * (told is not None)


def test_attention_that_needs_no_transformer_engine() -> None:
    for backend in ("auto", "flash", "unfused"):
        assert not [*group_problems(TrainConfig.of(attention_backend=backend), "kernels")]


def test_an_environment_that_contradicts_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTE_FLASH_ATTN", "0")
    assert [*group_problems(TrainConfig(), "kernels")] == [
        "--attention-backend auto contradicts NVTE_FLASH_ATTN=0 in the environment: take that out, and "
        "choose by --attention-backend"
    ]


def test_they_reach_megatron_core(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(state, "build_model", lambda hf, config, **more: seen.append((config, more)))
    monkeypatch.setattr(weight_gradient_fusion, "apply", lambda: seen.append("fusion"))
    config = TrainConfig.of(
        bf16=True, fp8_format="hybrid", fp8_recipe="blockwise", attention_backend="fused",
        gradient_accumulation_fusion=True, recompute_granularity="selective", recompute_modules=["mlp"],
        make_vocab_size_divisible_by=64, tensor_model_parallel_size=2, sequence_parallel=True,
        tp_comm_overlap=True,
    )  # fmt: skip
    hf = read_hf_model(tiny_llama)
    state.build_gpt(hf, config.layout, config.precision, config.kernels, packing=True)
    fusion, (megatron, more) = seen
    assert fusion == "fusion"
    assert isinstance(megatron, TransformerConfig)
    assert (megatron.fp8, megatron.fp8_recipe) == ("hybrid", "blockwise")
    assert megatron.attention_backend == AttnBackend.fused
    assert (megatron.gradient_accumulation_fusion, megatron.tp_comm_overlap) == (True, True)
    assert megatron.recompute_modules == ["mlp"]
    assert more == {"vocab_divisible_by": 64}
    seen.clear()
    state.build_gpt(hf, TrainConfig().layout, TrainConfig().precision, packing=True)
    ((megatron, more),) = seen
    assert (megatron.fp8, megatron.gradient_accumulation_fusion) == (None, False)
    assert megatron.params_dtype == torch.float32
    assert more == {"vocab_divisible_by": None}
