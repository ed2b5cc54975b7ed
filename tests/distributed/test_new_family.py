"""A new family with layers of its own is one file: OLMo 2, as a contributor adds it, against transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.checkpoint.hf.export import save_hf_weights
from megatron_probsft.checkpoint.hf.weights import matched_parameters
from megatron_probsft.checkpoint.megatron.torch_dist import load_model
from megatron_probsft.models import build, families
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from tests.support.gradients import check_gradients
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_families import save_tiny
from tests.support.whole_model import logits_of

TOKENS = torch.randint(0, 331, (60,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module", autouse=True)
def olmo2_file() -> Iterator[None]:
    """The file as if it lay in models/families."""
    families.__path__.append(str(Path(__file__).parents[1] / "support" / "toy_family"))
    families.families.cache_clear()
    yield
    families.__path__.pop()
    families.families.cache_clear()


@pytest.fixture(scope="module")
def olmo2(olmo2_file: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("olmo2") / "hf"
    return save_tiny(folder, "olmo2", tie_word_embeddings=False, num_hidden_layers=2)


LAYOUTS = [(1, 1, False), (2, 1, False), (2, 1, True), (2, 2, True)]


@pytest.mark.parametrize(("tp", "pp", "sequence_parallel"), rows(LAYOUTS, fast=[(2, 1, False)]))
def test_logits(tp: int, pp: int, sequence_parallel: bool, olmo2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(olmo2, dtype=torch.float64)
    with torch.no_grad():
        theirs = model(torch.tensor([TOKENS])).logits[0]
    shards = run_ranks(tp * pp, _logits, olmo2, Parallelism(tp, pp, sequence_parallel))
    ours = torch.cat([shard for shard in shards if shard.numel()], dim=1)[:, :331]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def _logits(folder: Path, layout: Parallelism) -> torch.Tensor:
    distributed.initialize(layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size)
    return logits_of(folder, TOKENS, layout)


def test_nothing_is_changed_on_the_way(olmo2: Path, tmp_path: Path) -> None:
    """To Megatron and back, and from there through two ranks."""
    run_ranks(1, _there_and_back, olmo2, tmp_path)
    run_ranks(2, _through_two_ranks, tmp_path)
    before = load_file(olmo2 / "model.safetensors")
    for name in ("back", "exported"):
        after = load_file(tmp_path / name / "model.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(before[tensor], after[tensor]) for tensor in before)


def _there_and_back(folder: Path, root: Path) -> None:
    distributed.initialize()
    hf_to_megatron(folder, root / "run")
    megatron_to_hf(root / "run", root / "back")


def _through_two_ranks(root: Path) -> None:
    distributed.initialize(2)
    checkpoint = root / "run" / "iter_0000000"
    hf = read_hf_model(checkpoint / "hf")
    model = build_model(hf, transformer_config(hf.shape, Parallelism(2), torch.float32))
    load_model(model, checkpoint)
    save_hf_weights(model, hf, root / "exported")


def test_a_parameter_that_the_table_lacks_is_named(olmo2: Path) -> None:
    run_ranks(1, _check_lacking_table, olmo2)


def _check_lacking_table(folder: Path) -> None:
    distributed.initialize()
    hf = read_hf_model(folder)
    model = build_model(hf, transformer_config(hf.shape, Parallelism(), torch.float32), on_meta=True)
    lacking = dataclasses.replace(hf.family, layer_weights=hf.family.layer_weights[:-1])
    with pytest.raises(AssertionError, match=r"olmo2 has no weight for .*self_attention.k_layernorm.weight"):
        list(matched_parameters(model, dataclasses.replace(hf, family=lacking)))


@pytest.mark.size("test")
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_gradients(sequence_parallel: bool, olmo2: Path, tmp_path: Path) -> None:
    check_gradients(tmp_path, olmo2, sequence_parallel=sequence_parallel)


def test_layers_of_transformer_engine_are_changed_too(olmo2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins take the place of its classes: linear layers that fuse the norm before them."""

    class Fused: ...

    class Column: ...

    class Row: ...

    class Norm: ...

    def engine_spec(**settings: Any) -> ModuleSpec:
        spec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=settings["qk_layernorm"])
        parts: Any = spec.submodules
        parts.self_attention.submodules.linear_qkv = Fused
        parts.mlp.keywords["submodules"].linear_fc1 = Fused
        return spec

    backend = SimpleNamespace(
        column_parallel_linear=lambda: Column, row_parallel_linear=lambda: Row, layer_norm=lambda: Norm
    )
    monkeypatch.setattr(build, "get_gpt_layer_with_transformer_engine_spec", engine_spec)
    monkeypatch.setattr(build, "TESpecProvider", lambda: backend)
    config: Any = SimpleNamespace(num_moe_experts=None, moe_grouped_gemm=False, qk_layernorm=True)
    parts: Any = build._transformer_engine_layer(read_hf_model(olmo2).family, config, None).submodules
    attention, mlp = parts.self_attention.submodules, parts.mlp.keywords["submodules"]
    assert attention.linear_qkv is mlp.linear_fc1 is Column
    assert issubclass(attention.linear_proj, Row)
    assert issubclass(mlp.linear_fc2, Row)
    assert parts.input_layernorm is parts.pre_mlp_layernorm is IdentityOp
