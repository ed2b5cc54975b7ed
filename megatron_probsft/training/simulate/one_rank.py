"""One rank of a run of any size: its own model, optimizer and step, on fake tensors, recorded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from megatron.core import parallel_state
from torch._subclasses.fake_tensor import FakeTensorMode

from megatron_probsft.checkpoint.megatron.checkpoint_bytes import (
    OwnBytes,
    resume_peak_bytes,
    save_peak_bytes,
)
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.runtime import distributed
from megatron_probsft.training.batches import StepBatch
from megatron_probsft.training.config.config import TrainConfig
from megatron_probsft.training.simulate import fake_tensors
from megatron_probsft.training.simulate.recorded_step import (
    EACH_MICRO_BATCH,
    ONCE_A_STEP,
    groups_by_name,
    optimizer_tensors,
    record_step,
    recorded_state,
)
from megatron_probsft.training.simulate.recorder import StepRecorder
from megatron_probsft.training.simulate.report import Collective, Flops, MemoryByKind, SimulatedStage
from megatron_probsft.training.simulate.stages import Passes, SimulatedRank, micro_batches_to_simulate
from megatron_probsft.training.simulate.step_samples import StepSamples, micro_batches_of
from megatron_probsft.training.start.memory_estimate import chunks_in_flight
from megatron_probsft.training.start.open_run import criterion_of
from megatron_probsft.training.state import (
    TrainState,
    build_gpt,
    build_train_state,
    data_parallel,
    join_layout,
)


def simulate_rank(
    config: TrainConfig, hf: HFModel, samples: StepSamples, rank: int, world_size: int
) -> SimulatedRank:
    """Return what this rank of `world_size` would do; nothing of the size of the model is allocated.

    It changes torch for the rest of the process.
    """
    fake_tensors.join_fake_world(rank, world_size)
    join_layout(config.layout, config.batch.seed)
    try:
        batch = micro_batches_of(config, samples, data_parallel())
        return _simulate(config, hf, batch)
    finally:
        distributed.shutdown()


def _simulate(config: TrainConfig, hf: HFModel, batch: StepBatch) -> SimulatedRank:
    layout, count = config.layout, len(batch.micro_batches)
    recorder = StepRecorder(groups_by_name())
    criterion = criterion_of(config, hf.shape.vocab_size)
    stage = parallel_state.get_pipeline_model_parallel_rank()

    def build() -> TrainState:
        # Without packing too: micro-batches are alike, so that stages need not tell each other their length.
        gpt = build_gpt(hf, layout, config.precision, config.kernels, packing=True)
        return build_train_state(gpt, layout, config.optimizer, config.schedule, train_iters=1)

    passes, few = [], 0
    with fake_tensors.faking() as mode:
        state = recorded_state(build, recorder)
        for few in micro_batches_to_simulate(layout, count):
            record_step(state, _faked(batch, few, mode), criterion, recorder)
            held = chunks_in_flight(layout, stage, few)
            passes.append(
                Passes(held, dict(recorder.peaks[EACH_MICRO_BATCH]), few, recorder.started[ONCE_A_STEP])
            )
        simulated = _stage(state, recorder, count, few)
        save, resume = _checkpoint_bytes(state, config)
        memory = dataclasses.replace(simulated.memory, save_host=save, resume_host=resume)
        simulated = dataclasses.replace(simulated, memory=memory)
    first = batch.micro_batches[0]
    return SimulatedRank(
        simulated,
        passes,
        dict(recorder.peaks[ONCE_A_STEP]),
        count,
        batch.pack_length,
        first.cu_seqlens.diff().tolist(),
        first.supervised_tokens,
        batch.efficiency,
    )


def _faked(batch: StepBatch, count: int, mode: FakeTensorMode) -> StepBatch:
    """Return the first micro-batches as fake tensors that know their values."""
    few = batch.micro_batches[:count]
    faked = [one.with_tensors(lambda tensor: fake_tensors.known(tensor, mode)) for one in few]
    return dataclasses.replace(batch, micro_batches=faked)


def _stage(state: TrainState, recorder: StepRecorder, micro_batches: int, simulated: int) -> SimulatedStage:
    at_peak = recorder.peaks[EACH_MICRO_BATCH]
    flops: Counter[str] = Counter()
    for (phase, kind), number in recorder.flops.items():
        flops[kind] += number * micro_batches // simulated if phase == EACH_MICRO_BATCH else number
    return SimulatedStage(
        stage=parallel_state.get_pipeline_model_parallel_rank(),
        rank=distributed.rank(),
        ranks=distributed.world_size() // parallel_state.get_pipeline_model_parallel_world_size(),
        layers=sum(len(chunk.decoder.layers) for chunk in state.gpt),
        parameters=sum(p.numel() for chunk in state.gpt for p in chunk.parameters()),
        memory=MemoryByKind(
            weights=at_peak["weights"],
            gradients=at_peak["gradients"],
            optimizer=at_peak["optimizer"],
            activations=at_peak["activations"],
            head=at_peak["head"],
            communication=at_peak["communication"],
            save_host=0,
            resume_host=0,
        ),
        flops=Flops(flops["linear"], flops["attention"], flops["head"]),
        collectives=tuple(_collectives(recorder, micro_batches, simulated)),
    )


def _checkpoint_bytes(state: TrainState, config: TrainConfig) -> tuple[int, int]:
    """Return the bytes of the host that a save and a resume take on this rank for a while."""
    weights = [parameter.nbytes for chunk in state.gpt for parameter in chunk.parameters()]
    states = [tensor.nbytes for tensor in optimizer_tensors(state)]
    own = OwnBytes(sum(weights), max(weights), sum(states), max(states))
    save = save_peak_bytes(
        own,
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
        distributed_optimizer=bool(config.layout.use_distributed_optimizer),
        in_background=config.checkpoint.async_save,
        on_gpu=True,
    )
    return save, resume_peak_bytes(own)


def _collectives(recorder: StepRecorder, micro_batches: int, simulated: int) -> Iterable[Collective]:
    calls: Counter[tuple[str, int, str]] = Counter()
    sizes: Counter[tuple[str, int, str]] = Counter()
    for call, number in recorder.calls.items():
        # Gradients and weights of replicas are sent once a step, also while micro-batches run.
        often = call.phase == EACH_MICRO_BATCH and "DP" not in call.group.name
        times = (micro_batches, simulated) if often else (1, 1)
        key = (call.group.name, call.group.size, call.operation)
        calls[key] += number * times[0] // times[1]
        sizes[key] += recorder.bytes[call] * times[0] // times[1]
    for (group, size, operation), number in sorted(calls.items()):
        yield Collective(group, size, operation, sizes[group, size, operation], number)
