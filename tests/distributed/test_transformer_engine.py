"""Transformer Engine's layers, by a stand-in: equal numbers, and checkpoints that load in either place."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core import dist_checkpointing
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.convert import hf_to_megatron
from megatron_probsft.checkpoint.megatron import torch_dist
from megatron_probsft.models import build
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from tests.support.conversions import to_megatron
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny_family
from tests.support.training_runs import config_for, records, train, write_pairs
from tests.support.transformer_engine import in_transformer_engine, run_tests

OLDEST, NEWEST = "2.5.0", "2.18.0"
TABLES = "tests/distributed"
PARITY = f"{TABLES}/test_training_parity.py"
ONE, MORE = f"{PARITY}::test_layout_equals_one_process", f"{PARITY}::test_more_layouts_equal_one_process"
EXPERTS = f"{TABLES}/test_expert_training.py"
A_CHOICE = (
    f"{ONE}[TP 2 × PP 2 + SP-packed-original]",
    f"{ONE}[CP 2-unpacked-original]",
    f"{ONE}[DP 2 distributed optimizer + overlaps-packed-original]",
    f"{ONE}[full recompute-packed-original]",
    f"{PARITY}::test_one_process_equals_plain_transformers[original]",
    f"{EXPERTS}::test_layout_equals_one_process[TP 2 × EP 2 + SP-Qwen3-MoE]",
)
"""Each dimension of the layout."""

# What runs in one process: (version, what pytest is given).
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a choice": (NEWEST, A_CHOICE),
    "a choice, the oldest": (OLDEST, A_CHOICE),
    "training": (NEWEST, (PARITY,)),
    "training, the oldest": (OLDEST, (ONE, MORE)),
    "experts": (NEWEST, (EXPERTS,)),
    "families": (
        NEWEST,
        (f"{TABLES}/test_families.py", f"{TABLES}/test_model_parity.py", f"{TABLES}/test_new_family.py",
         "-k", "not same_operations_give_the_same_bits"),
    ),
    "checkpoints": (
        NEWEST,
        tuple(f"{TABLES}/test_{name}.py" for name in (
            "resume", "conversion", "interoperation", "verify", "checkpoints", "saved_weights",
            "batch_shape_parity")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("run", rows(RUNS, fast=[], rare=[name for name in RUNS if name != "a choice"]))
def test_the_suite_passes(run: str) -> None:
    version, arguments = RUNS[run]
    shown = run_tests(version, *arguments)
    assert re.search(r"\d+ passed", shown)
    assert "failed" not in shown


STEPS = 4
OPTIMIZERS: dict[str, dict[str, Any]] = {"plain": {}, "sharded": {"use_distributed_optimizer": True}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-MoE: Transformer Engine fuses no norm of queries, keys and mixtures, and groups the experts."""
    return save_tiny_family(tmp_path_factory.mktemp("tiny") / "moe", "Qwen3-MoE", num_hidden_layers=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", 20)


def _settings(optimizer: str) -> dict[str, Any]:
    return {"train_iters": STEPS, "save_optim": True, "lr": 2e-3, **OPTIMIZERS[optimizer]}


def _begin(run: Path, model: Path, data: Path, optimizer: str) -> None:
    """Train two steps of four."""
    train(1, config_for(run, model, data, exit_interval=2, **_settings(optimizer)))


def _go_on(run: Path, data: Path, optimizer: str) -> list[dict[str, Any]]:
    """Resume the run, up to its end."""
    train(1, config_for(run, None, data, load=str(run), **_settings(optimizer)))
    return records(run, "train")


@torch.no_grad()
def _megatron_lm_reads(
    checkpoints: list[Path], model: Path, tokens: list[int]
) -> tuple[list[torch.Tensor], Counter]:
    """Logits `[s, 384]` of Megatron-Core's own model with its own spec, loaded as Megatron-LM does it.

    Of ours are only the sizes. Also what Transformer Engine was asked for.
    """
    from megatron.core import optimizer
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.packed_seq_params import PackedSeqParams
    from transformer_engine.stand_in import calls  # type: ignore[import-not-found]

    # Why runtime/imports/transformer_engine_import.py keeps it away.
    assert not torch.cuda.is_available()
    assert not optimizer.USING_PYTORCH_OPTIMIZER, "Megatron-Core no longer takes it without a GPU"
    distributed.initialize()
    hf = read_hf_model(model)
    config = build.transformer_config(hf.shape, Parallelism(), torch.float32)
    gpt = GPTModel(
        config,
        get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts, moe_grouped_gemm=True, qk_layernorm=True
        ),
        vocab_size=384,
        max_sequence_length=1024,
        share_embeddings_and_output_weights=hf.shape.tied_embeddings,
        position_embedding_type="rope",
    ).eval()
    bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
    pack = PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=len(tokens),
        max_seqlen_kv=len(tokens),
    )  # fmt: skip
    found = []
    for checkpoint in checkpoints:
        for parameter in gpt.parameters():
            parameter.fill_(torch.nan)
        state: Any = dist_checkpointing.load({"model": gpt.sharded_state_dict()}, str(checkpoint))
        gpt.load_state_dict(state["model"])
        positions = torch.arange(len(tokens))[None]
        found.append(gpt(torch.tensor([tokens]), positions, None, packed_seq_params=pack)[0])
    return found, calls


def _there(folder: Path, optimizers: tuple[str, str], model: Path, data: Path, tokens: list[int]) -> Any:
    """All that happens in the process with Transformer Engine."""
    here, there = optimizers
    _go_on(folder / "begun here", data, here)
    _begin(folder / "begun there", model, data, there)
    run_ranks(1, _converts, model, folder / "converted there")
    checkpoints = [folder / "converted" / "iter_0000000", folder / "whole" / "iter_0000004"]
    return _megatron_lm_reads(checkpoints, model, tokens)


def _converts(model: Path, run: Path) -> None:
    distributed.initialize()
    hf_to_megatron(model, run)


def _objects(checkpoint: Path) -> set[str]:
    return torch_dist.BlockReader(checkpoint).objects - {"rng/shard_0.0.0_1.1.1"}


PLACES = [("sharded", "plain"), ("plain", "sharded")]  # the optimizer in local layers, in Transformer Engine


@pytest.mark.parametrize(("here", "there"), rows(PLACES, fast=[], rare=PLACES[1:]))
def test_a_checkpoint_goes_on_in_the_other_place(
    here: str, there: str, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training goes on, and Megatron-LM itself reads what local layers and the conversion wrote."""
    settings = _settings(here)
    whole = train(1, config_for(tmp_path / "whole", model, data, save_hf=str(tmp_path / "hf"), **settings))
    to_megatron(model, tmp_path / "converted")
    with monkeypatch.context() as patch:  # as older versions wrote it
        patch.setattr(torch_dist, "_norms_extra_state", lambda state: {})
        _begin(tmp_path / "begun here", model, data, here)
    tokens = torch.randint(0, 331, (24,), generator=torch.Generator().manual_seed(4)).tolist()
    logits, calls = in_transformer_engine(OLDEST, _there, tmp_path, (here, there), model, data, tokens)

    _go_on(tmp_path / "begun there", data, there)
    for run in ("begun there", "begun here"):
        for found, step in zip(records(tmp_path / run, "train"), whole, strict=True):
            for key in ("loss", "nll", "mean_p", "grad_norm"):
                assert found[key] == pytest.approx(step[key], rel=1e-5), (run, key)

    for found, hf in zip(logits, (model, tmp_path / "hf"), strict=True):
        theirs = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float64, experts_implementation="eager")
        with torch.no_grad():
            reference = theirs(torch.tensor([tokens])).logits[0]
        torch.testing.assert_close(found[:, :331].double(), reference, rtol=0, atol=1e-4)
    assert calls["apply_rotary_pos_emb", 1] == 4 * len(logits)
    assert calls["GroupedLinear", 6] == 4 * len(logits)
    for one, other in (
        ("converted/iter_0000000", "converted there/iter_0000000"),
        ("whole/iter_0000004", "begun there/iter_0000002"),
    ):
        assert _objects(tmp_path / one) == _objects(tmp_path / other)
