"""Every family against transformers on every layout, and to Megatron and back bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.checkpoint.hf_export import save_hf_weights
from megatron_probsft.checkpoint.saving import Save
from megatron_probsft.checkpoint.torch_dist import load_model, model_state
from megatron_probsft.models.build import Parallelism, build_model, read_hf_model, transformer_config
from megatron_probsft.models.families import families
from megatron_probsft.runtime import distributed
from tests.ranks import run_ranks
from tests.tiny_families import CASES, save_tiny_family
from tests.whole_model import logits_of

LAYOUTS = [(1, 1), (2, 1), (1, 2), (1, 3), (2, 2)]
TOKENS = torch.randint(0, 331, (60,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {case: save_tiny_family(root / case, case) for case in CASES}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """In float64."""
    found = {}
    for case, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, experts_implementation="eager"
        )
        with torch.no_grad():
            found[case] = model(torch.tensor([TOKENS])).logits[0]
    return found


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: "TP {} × PP {}".format(*layout))
def ours(request: pytest.FixtureRequest, folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    """Of all families, in one start of the ranks."""
    tp, pp = request.param
    shards = run_ranks(tp * pp, _all_logits, folders, tp, pp)
    return {case: torch.cat([of[case] for of in shards if of[case].numel()], dim=1) for case in folders}


def _all_logits(folders: dict[str, Path], tp: int, pp: int) -> dict[str, torch.Tensor]:
    distributed.initialize(tp, pp)
    return {case: logits_of(folder, TOKENS, Parallelism(tp, pp, tp > 1)) for case, folder in folders.items()}


@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    wanted = theirs[case]
    assert (ours[case][:, :331] - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.fixture(scope="module")
def carried(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each family: to Megatron, back, through TP 2 × PP 2, and back from there."""
    root = tmp_path_factory.mktemp("carried")
    run_ranks(1, _there_and_back, folders, root)
    run_ranks(4, _through_a_layout, folders, root)
    run_ranks(1, _back_from_there, folders, root)
    return root


def _there_and_back(folders: dict[str, Path], root: Path) -> None:
    distributed.initialize()
    for case, folder in folders.items():
        hf_to_megatron(folder, root / case / "run")
        megatron_to_hf(root / case / "run", root / case / "back")


def _through_a_layout(folders: dict[str, Path], root: Path) -> None:
    distributed.initialize(2, 2, expert_model_parallel_size=1)
    for case in folders:
        checkpoint = root / case / "run" / "iter_0000000"
        hf = read_hf_model(checkpoint / "hf")
        config = transformer_config(hf.shape, Parallelism(2, 2, True), torch.float32)
        model = build_model(hf.shape, config)
        load_model(model, checkpoint)
        content = {"model": model_state(model), "iteration": 0, "consumed_samples": 0}
        Save(root / case / "trained", 0, content, hf.folder, None).finish()
        save_hf_weights(model, hf, root / case / "exported")


def _back_from_there(folders: dict[str, Path], root: Path) -> None:
    distributed.initialize()
    for case in folders:
        megatron_to_hf(root / case / "trained", root / case / "back again")


@pytest.mark.parametrize("way", ["back", "exported", "back again"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_changed_on_the_way(case: str, way: str, carried: Path, folders: dict[str, Path]) -> None:
    """Straight through, exported by four ranks, and converted from what four ranks saved."""
    before, after = (
        load_file(folder / "model.safetensors") for folder in (folders[case], carried / case / way)
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (carried / case / way / name).read_text() == (folders[case] / name).read_text()


def test_every_family_is_tested(folders: dict[str, Path]) -> None:
    tested = {read_hf_model(folder).family.name for folder in folders.values()}
    assert tested == {family.name for family in families()}
