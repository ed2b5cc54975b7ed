"""Our Megatron model against transformers on every layout, and conversion bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_probsft.checkpoint.hf.export import save_hf_weights
from megatron_probsft.checkpoint.hf.weights import load_hf_weights
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from tests.support.ranks import run_ranks
from tests.support.tiny_models import save_tiny_model
from tests.support.whole_model import logits_of

LAYOUTS = [(1, 1, False), (3, 1, False), (1, 2, False), (3, 2, False), (3, 1, True), (3, 2, True)]
TEXT = (
    "The capital of France is Paris. Water boils at 100 degrees Celsius at sea level, and freezes at 0.\n"
    "def add(a, b):\n    return a + b\n\nOnce upon a time, in 1897, a small engine pulled 12 cars uphill."
)


def _logits(folder: Path, token_ids: list[int], layout: tuple[int, int, bool], packed: bool) -> torch.Tensor:
    """On each rank: its vocabulary shard's logits `[s, V/tp]` from the last stage (empty elsewhere)."""
    tp, pp, sequence_parallel = layout
    distributed.initialize(tp, pp)
    cuts = [0, len(token_ids) // 2, len(token_ids)] if packed else None
    return logits_of(folder, token_ids, Parallelism(tp, pp, sequence_parallel), cuts)


def _check_logits(folder: Path, token_ids: list[int], layout: tuple[int, int, bool], packed: bool) -> float:
    """The largest difference from transformers in float64, in units of the largest logit.

    In float32 transformers' own is up to 4e-6, depending on the processor.
    """
    token_ids = token_ids[: len(token_ids) // 6 * 6]
    shards = run_ranks(layout[0] * layout[1], _logits, folder, token_ids, layout, packed)
    ours = torch.cat([shard for shard in shards if shard.numel()], dim=1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        half = len(token_ids) // 2
        parts = [token_ids[:half], token_ids[half:]] if packed else [token_ids]
        theirs = torch.cat([model(torch.tensor([part])).logits[0] for part in parts])
    return ((ours[:, : theirs.shape[1]] - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["one sequence", "pack of two"])
def test_tiny_llama_logits(tiny_llama: Path, layout: tuple[int, int, bool], packed: bool) -> None:
    token_ids = torch.randint(0, 331, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    assert _check_logits(tiny_llama, token_ids, layout, packed) < 1e-5


@pytest.mark.parametrize("layout", [(1, 1, False), (2, 2, True)], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_logits(tmp_path: Path, layout: tuple[int, int, bool], tied: bool) -> None:
    folder = save_tiny_model(tmp_path / "qwen2", family="qwen2", tied=tied, heads=8, groups=2)
    token_ids = torch.randint(0, 331, (60,), generator=torch.Generator().manual_seed(2)).tolist()
    assert _check_logits(folder, token_ids, layout, packed=True) < 1e-5


@pytest.mark.size("test")
@pytest.mark.parametrize("layout", [(1, 1, False), (3, 1, False), (1, 2, False), (3, 2, False)], ids=str)
def test_smollm2_logits_on_real_text(smollm2: Path, layout: tuple[int, int, bool]) -> None:
    token_ids = AutoTokenizer.from_pretrained(smollm2)(TEXT).input_ids
    assert _check_logits(smollm2, token_ids, layout, packed=False) < 1e-5


def _round_trip(folder: Path, target: Path, tp: int, pp: int) -> None:
    distributed.initialize(tp, pp)
    hf = read_hf_model(folder)
    model = build_model(hf, transformer_config(hf.shape, Parallelism(tp, pp), torch.float32))
    load_hf_weights(model, hf)
    save_hf_weights(model, hf, target)
    dist.barrier()


def _same_tensors(first: Path, second: Path) -> bool:
    def load(folder: Path) -> dict[str, torch.Tensor]:
        return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}

    a, b = load(first), load(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_import_then_export_is_bit_identical(
    model: str, tp: int, pp: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    run_ranks(tp * pp, _round_trip, folder, tmp_path / "out", tp, pp)
    assert _same_tensors(folder, tmp_path / "out")
    # transformers accepts the folder, shards and index included
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    AutoTokenizer.from_pretrained(tmp_path / "out")


@pytest.mark.size("test")
def test_smollm2_round_trip_is_bit_identical(smollm2: Path, tmp_path: Path) -> None:
    run_ranks(6, _round_trip, smollm2, tmp_path / "out", 3, 2)
    assert _same_tensors(smollm2, tmp_path / "out")
