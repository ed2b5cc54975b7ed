"""Prints what makes the host wait in a training step on CUDA, as JSON: a list for each case of `CASES`.

It is a process of its own, since it makes torch believe in a GPU: `python -m
tests.support.pretended_gpu.training_step CASE …` imports once and forks for each case. The tensors are fake,
the process group is torch's "fake" one: this is one rank of a world of which nobody else is there.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.support.forked import outcome_in_child

LAYERS, SEQUENCES, SUPERVISED = 4, (0, 40, 48, 96, 128), 50
TP, CP, EP = "tensor_model_parallel_size", "context_parallel_size", "expert_model_parallel_size"
FULL = {"recompute_granularity": "full", "recompute_num_layers": 1}
OVERLAPS = {"use_distributed_optimizer": True, "overlap_grad_reduce": True, "overlap_param_gather": True}
# (ranks, settings)
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "one GPU": (1, {}),
    "CP 2": (2, {CP: 2}),
    "TP 2 × CP 2 + SP": (4, {TP: 2, CP: 2, "sequence_parallel": True}),
    "DP 8 with overlaps": (8, OVERLAPS),
    "full recompute": (1, FULL | {"recompute_method": "uniform"}),
    "CP 2, recompute of a block": (2, FULL | {CP: 2, "recompute_method": "block"}),
    "selective recompute": (1, {"recompute_granularity": "selective"}),
    "float32": (1, {"bf16": False}),
    "experts": (2, {EP: 2}),
    "experts, full recompute": (2, FULL | {EP: 2, "recompute_method": "uniform"}),
}

# By `_noticed`.
NOTICED = {
    f"{kind} tests/support/pretended_gpu/training_step.py:_noticed": number
    for kind, number in {"read": 4, "copy": 3, "shape": 2, "wait": 1}.items()
}


def main() -> None:
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    import megatron_probsft.training.step  # noqa: F401
    from tests.support.pretended_gpu.device import pretend

    pretend()
    print(json.dumps({name: outcome_in_child(_found, name) for name in sys.argv[1:] or ["noticed", *CASES]}))


def _found(name: str) -> dict[str, int]:
    return _noticed() if name == "noticed" else _waits(*CASES[name], experts="experts" in name)


def _waits(world_size: int, settings: dict[str, Any], *, experts: bool) -> dict[str, int]:
    import torch
    import torch.distributed as dist
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from megatron_probsft.training.state import join_layout
    from tests.support.pretended_gpu.waits import noted

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    config = _config(settings)
    join_layout(config.layout, config.batch.seed)
    _stand_in()
    hf = _model(experts)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.autograd.set_multithreading_enabled(False),  # the stack shows who asks
    ):
        step = _step(config, hf)
        with noted():  # Adam's state is made
            step()
        with noted() as waits:
            step()
    return dict(waits.found)


def _noticed() -> dict[str, int]:
    """Do each thing that the host waits for, and some that it does not."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tests.support.pretended_gpu.waits import noted

    with FakeTensorMode():
        values, mask = (torch.ones(4, dtype=dtype, device="cuda") for dtype in (torch.float32, torch.bool))
        with noted() as waits:
            values.sum().item(), bool(mask.any()), values.tolist(), int(values[0])
            torch.tensor(1.0, device="cuda"), values.cpu(), values.copy_(torch.ones(4))
            values[mask], values.masked_select(mask)
            torch.cuda.synchronize()
            # These don't:
            torch.full((), 1.0, device="cuda"), torch.ones(4).to("cuda", non_blocking=True)
            values[mask] = 0.0
            values.to("cpu", non_blocking=True), torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
    return dict(waits.found)


def _config(settings: dict[str, Any]) -> Any:
    from megatron_probsft.training.config.config import TrainConfig

    values = {"hf_model": "x", "data": ["x"], "save": "x", "bf16": True, "seq_length": SEQUENCES[-1]}
    return TrainConfig.of(**(values | {"train_iters": 10} | settings))


def _model(experts: bool) -> Any:
    from transformers import Qwen3Config, Qwen3MoeConfig

    from megatron_probsft.models.families import family_of
    from megatron_probsft.models.hf_model import HFModel

    sizes: dict[str, Any] = dict(  # noqa: C408
        vocab_size=331, hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
        max_position_embeddings=1024,
    )  # fmt: skip
    name = "Qwen3MoeForCausalLM" if experts else "Qwen3ForCausalLM"
    hf_config: Any = (
        Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, **sizes)
        if experts
        else Qwen3Config(**sizes)
    )
    hf_config.architectures = [name]
    family = family_of(name)
    return HFModel("/nowhere", hf_config, family, family.shape(hf_config))  # type: ignore[arg-type]


def _step(config: Any, hf: Any) -> Any:
    import numpy as np
    import torch

    from megatron_probsft.objectives.registry import get_objective
    from megatron_probsft.training.batches import MicroBatch, StepBatch
    from megatron_probsft.training.state import build_gpt, build_train_state
    from megatron_probsft.training.step import Criterion, train_step

    gpt = build_gpt(hf, config.layout, config.precision, packing=True)
    _give_values(gpt)
    state = build_train_state(gpt, config.layout, config.optimizer, config.schedule, 10)
    length = SEQUENCES[-1]
    here = length // config.layout.context_parallel_size

    def on_gpu(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device="cuda")

    def micro_batch() -> MicroBatch:
        return MicroBatch(
            tokens=on_gpu(1, here),
            position_ids=on_gpu(1, length),
            cu_seqlens=on_gpu(len(SEQUENCES), dtype=torch.int32),
            max_seqlen=48,
            rows=on_gpu(SUPERVISED),
            labels=on_gpu(SUPERVISED),
            supervised_tokens=SUPERVISED,
            bounds=SEQUENCES,
        )

    criterion = Criterion(get_objective("p"), 331)

    def step() -> None:
        batch = StepBatch([micro_batch(), micro_batch()], length, np.full(8, 16), 1.0)
        result = train_step(state, batch, criterion)
        assert result.skipped is None

    return step


def _give_values(gpt: list[Any]) -> None:
    """Orders of experts, which a dispatcher makes on the host, have values."""
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    for layer in (module for chunk in gpt for module in chunk.modules()):
        dispatcher = getattr(layer, "token_dispatcher", None)
        if dispatcher is not None:
            with unset_fake_temporarily():
                order = torch.arange(dispatcher.num_experts).view(-1, dispatcher.num_local_experts)
                dispatcher.sort_input_by_local_experts = order.T.ravel()
                dispatcher.restore_output_by_local_experts = order.view_as(order.T).T.ravel()


class _Launch:
    """A Triton kernel of which nothing is launched."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


def _stand_in() -> None:
    sys.modules["liger_kernel"] = None  # type: ignore[assignment]  # its kernels ask Triton for a real GPU
    import torch

    from megatron_probsft.vocab_parallel import triton_kernels

    def gather(gathered: list, own: Any, group: Any = None) -> None:
        gathered[:] = [own] * len(gathered)

    torch.distributed.all_gather_object = gather
    triton_kernels._statistics_kernel = triton_kernels._gradient_kernel = _Launch()  # type: ignore[assignment]


if __name__ == "__main__":
    main()
