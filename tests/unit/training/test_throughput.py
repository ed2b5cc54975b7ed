"""Counts, times and layouts by formula: against independent sums, published measurements and the rules."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.scaling.models import MODELS, Model
from benchmarks.scaling.published import PUBLISHED, Published, estimated
from megatron_probsft.models.layout import parallelism_problems
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.training.config.arguments import parse_arguments
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.log.flops import model_flops, peak_tflops
from megatron_probsft.training.simulate.report import Collective, SimulatedStep
from megatron_probsft.training.simulate.step_samples import StepSamples, full_packs
from megatron_probsft.training.start.device_defaults import by_device
from megatron_probsft.training.start.memory_estimate import stage_memory
from megatron_probsft.training.throughput.cards import CARDS, card_of
from megatron_probsft.training.throughput.links import Assumed, Links
from megatron_probsft.training.throughput.show import flags, show_step_time, show_suggestions
from megatron_probsft.training.throughput.step_counts import counted_step
from megatron_probsft.training.throughput.suggest_layout import Job, suggest_layouts
from megatron_probsft.training.throughput.time_model import Machine, StepTime, real_tokens, step_time
from megatron_probsft.training.throughput.workload import chat_samples, plan_workload

H100 = Machine(CARDS["h100-80gb"])
OVERLAPPED: dict[str, Any] = {
    "use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True,
}  # fmt: skip


def _config(**settings: Any) -> TrainConfig:
    return TrainConfig.of(**{"bf16": True, "seq_length": 2048, "global_batch_size": 64} | settings)


def _step(model: Model, config: TrainConfig, samples: StepSamples, dp: int) -> SimulatedStep:
    workload = plan_workload(samples, config.batch, config.layout, dp)
    return counted_step(config, model.family, model.shape, workload)


def _supervised(samples: StepSamples, share: float) -> StepSamples:
    return StepSamples(samples.lengths, tuple(round(share * (length - 1)) for length in samples.lengths))


def _time(model: str, dp: int, machine: Machine = H100, **settings: Any) -> StepTime:
    config = _config(**settings)
    step = _step(MODELS[model], config, full_packs(config), dp)
    return step_time(step, config, MODELS[model].shape, machine)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_a_card_is_its_data_sheets(card: Any) -> None:
    known = peak_tflops(f"NVIDIA {card.device}")
    assert known == card.bf16 / 1e12
    assert card.fp8 is None or card.fp8 == pytest.approx(2 * card.bf16, rel=0.02)
    assert "http" in card.source or "white paper" in card.source


def test_an_unknown_card_is_refused() -> None:
    with pytest.raises(UserError, match=r"--gpu h100-80 is none of h100-80gb, .*; did you mean h100-80gb?"):
        card_of("h100-80")
    with pytest.raises(UserError, match=r"invalid choice: 'h100'"):
        parse_arguments(["--dry-run", "--world-size", "8", "--gpu", "h100"])


def test_collectives_take_what_the_links_carry() -> None:
    assumed = Assumed(hop_in_node=0.0, hop_between_nodes=0.0)
    layout = TrainConfig.of(tensor_model_parallel_size=4, pipeline_model_parallel_size=2).layout
    links = Links(CARDS["h100-80gb"], layout, 64, assumed)
    node, network = 450e9 * assumed.link, 50e9 * assumed.network

    def seconds(group: str, size: int, operation: str) -> float:
        return links.of(Collective(group, size, operation, 10**9, 1))

    assert seconds("TP", 4, "all_gather") == pytest.approx(0.75e9 / node)
    assert seconds("TP", 4, "all_reduce") == pytest.approx(1.5e9 / node)
    # Eight replicas of TP 4: two in a node, whose network cards the ring shares.
    assert seconds("DP", 8, "reduce_scatter") == pytest.approx(7 / 8 * 1e9 / (2 * network))
    # The other stage is 32 ranks further, in another node.
    assert seconds("PP", 2, "send") == pytest.approx(1e9 / network)
    # Two experts' ranks are in the node; what goes to the other two leaves it.
    assert seconds("EP", 4, "all_to_all") == pytest.approx(0.5e9 / network)
    slower = dataclasses.replace(links, assumed=Assumed())
    one, many = (slower.of(Collective("DP", 8, "all_gather", 10**6, calls)) for calls in (1, 9))
    assert many - one == pytest.approx(8 * (4 * 8e-6 + 4 * 2e-6))


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tensor_model_parallel_size": 4, "sequence_parallel": True},
    {"pipeline_model_parallel_size": 4, "decoder_last_pipeline_num_layers": 4},
    {"pipeline_model_parallel_size": 4, "num_virtual_stages_per_pipeline_rank": 7},
    {"context_parallel_size": 4},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_counted_flops_are_the_models(layout: dict[str, Any]) -> None:
    """Of all ranks together, with attention's recomputation in the backward pass taken off."""
    model = MODELS["Qwen2.5-7B"]
    config = _config(**layout)
    samples = _supervised(full_packs(config), 0.25)
    step = _step(model, config, samples, dp=4)
    counted = sum(
        stage.ranks * (stage.flops.linear + stage.flops.attention * 3 / 3.5 + stage.flops.head)
        for stage in step.stages
    )
    lengths = np.asarray(samples.lengths) - 1
    assert real_tokens(step) == pytest.approx(lengths.sum())
    assert counted == pytest.approx(model_flops(model.shape, lengths, int(lengths.sum()) // 4), rel=1e-3)
    assert sum(stage.layers for stage in step.stages) == model.shape.num_layers


def test_a_mixtures_sizes_are_the_familys() -> None:
    from transformers import Qwen3MoeConfig

    sizes: dict[str, Any] = {  # in Qwen/Qwen3-30B-A3B's config.json, but for norms and positions
        "num_hidden_layers": 48, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    }  # fmt: skip
    model = MODELS["Qwen3-30B-A3B"]
    shape = model.family.shape(Qwen3MoeConfig(**sizes))
    assert dataclasses.replace(shape, rope_frequencies=()) == model.shape


def test_counted_flops_of_experts() -> None:
    model = MODELS["Qwen3-30B-A3B"]
    config = _config(expert_model_parallel_size=4)
    samples = full_packs(config)
    (stage,) = _step(model, config, samples, dp=8).stages
    counted = stage.ranks * (stage.flops.linear + stage.flops.attention * 3 / 3.5 + stage.flops.head)
    lengths = np.asarray(samples.lengths) - 1
    assert counted == pytest.approx(model_flops(model.shape, lengths, lengths.sum()), rel=1e-3)
    sent = {each.group: each for each in stage.collectives}
    assert sent.keys() == {"EP", "DP", "expert DP"}
    assert sent["expert DP"].group_size == 2
    # Each of 48 layers sends each token to 8 experts and back, forward and backward.
    tokens = lengths.sum() / 8
    assert sent["EP"].bytes == pytest.approx(48 * 4 * tokens * 8 * 2048 * 2, rel=1e-3)


@pytest.mark.parametrize("virtual", [None, 2])
def test_the_bubble_of_equal_stages(virtual: int | None) -> None:
    """(p − 1) / (v m) of the rest (arXiv 2104.04473, section 2.2)."""
    model = MODELS["Qwen2.5-7B"]
    config = _config(
        pipeline_model_parallel_size=2, num_virtual_stages_per_pipeline_rank=virtual, micro_batch_size=4
    )
    samples = _supervised(full_packs(config), 0.0)
    step = _step(model, config, samples, dp=2)
    time = step_time(step, config, model.shape, H100)
    working = time.linear + time.attention + time.memory_bound
    assert step.micro_batches == 8
    assert time.bubble / working == pytest.approx(1 / ((virtual or 1) * 8), rel=1e-3)


def test_what_makes_a_step_shorter() -> None:
    eight = _time("Qwen2.5-7B", 8, **OVERLAPPED)
    assert _time("Qwen2.5-7B", 8, Machine(CARDS["b200"]), **OVERLAPPED).total < eight.total
    assert _time("Qwen2.5-7B", 8, Machine(CARDS["h100-80gb"], fp8=True), **OVERLAPPED).total < eight.total
    bare = _time("Qwen2.5-7B", 8, use_distributed_optimizer=True)  # and no overlap
    assert bare.exposed_gradients > 10 * eight.exposed_gradients
    assert bare.linear == eight.linear
    again: dict[str, Any] = {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    }
    assert _time("Qwen2.5-7B", 8, **OVERLAPPED, **again).linear == pytest.approx(eight.linear * 4 / 3)
    tp: dict[str, Any] = {"tensor_model_parallel_size": 8, "sequence_parallel": True}
    hidden = Machine(CARDS["h100-80gb"], tp_overlap=True)
    assert _time("Qwen2.5-7B", 1, **tp).exposed_layers == pytest.approx(
        3 * _time("Qwen2.5-7B", 1, hidden, **tp).exposed_layers
    )


# Megatron's own programs, and the others: FSDP, layers that are not fused, cards of 500 W.
OURS_TO_THEIRS = {"NeMo 2": (0.88, 1.12), "Megatron": (0.88, 1.12), "Llama 3": (0.9, 1.15)}


@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: f"{run.name}, {run.model}, {run.gpus}")
def test_published_measurements_are_met(run: Published) -> None:
    low, high = next(
        (bounds for name, bounds in OURS_TO_THEIRS.items() if run.name.startswith(name)), (1.1, 1.6)
    )
    assert low < estimated(run) / run.tokens_per_second_per_gpu < high


def _job(model: str, world_size: int, card: str = "h100-80gb", **settings: Any) -> Job:
    config = _config(seq_length=4096, global_batch_size=256, **settings)
    return Job(
        config, MODELS[model].family, MODELS[model].shape, chat_samples(config.batch), "assumed",
        Machine(CARDS[card]), world_size,
    )  # fmt: skip


def test_suggested_layouts_fit_and_divide() -> None:
    job = _job("Qwen2.5-7B", 16)
    found = suggest_layouts(job)
    assert len(found) == 8
    assert len({each.key for each in found}) == 8
    for each in found:
        layout = each.config.layout
        assert [*parallelism_problems(job.shape, layout, 16)] == []
        assert layout.tensor_model_parallel_size <= 8
        stages = stage_memory(
            each.config, job.family, job.shape, each.data_parallel_size, each.micro_batches, each.pack_length
        )
        assert max(stage.total for stage in stages) <= (80 * 0.9 - 2) * 2**30
    assert found[0].tokens_per_second >= 0.97 * max(each.tokens_per_second for each in found)
    parsed = parse_arguments(["--dry-run", *flags(found[0].config).split()])
    assert by_device(parsed, None, 16, gpu=True).layout == found[0].config.layout
    assert parsed.batch.micro_batch_size == found[0].config.batch.micro_batch_size


def test_a_model_that_fits_nowhere_and_one_that_must_be_computed_again() -> None:
    assert suggest_layouts(_job("Llama-3.1-70B", 8)) == []
    (one,) = suggest_layouts(_job("Qwen2.5-1.5B", 1, micro_batch_size=8))
    assert one.config.layout.recompute_granularity == "full"
    assert suggest_layouts(_job("Qwen2.5-7B", 1)) == []


def test_the_estimates_say_that_they_are() -> None:
    out = Console(file=io.StringIO(), width=150)
    job = _job("Qwen2.5-7B", 8, tensor_model_parallel_size=2, sequence_parallel=True)
    workload = plan_workload(job.samples, job.config.batch, job.config.layout, 4)
    show_step_time(job, counted_step(job.config, job.family, job.shape, workload), out)
    show_suggestions(job, suggest_layouts(job), out)
    show_suggestions(_job("Llama-3.1-70B", 8), [], out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "estimated seconds of a step on h100-80gb" in text
    assert "nothing here was measured" in text
    assert "assumed: 256 samples of" in text
    assert "layouts of 8 × h100-80gb, best first; all estimated" in text
    assert "no layout of 8 × h100-80gb holds this model" in text


def test_lengths_that_are_assumed() -> None:
    samples = chat_samples(_config(seq_length=4096).batch)
    assert len(samples.lengths) == 64
    assert max(samples.lengths) <= 4096
    assert np.median(samples.lengths) < np.mean(samples.lengths) < 1000
