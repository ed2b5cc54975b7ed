"""Every family against transformers on every layout, and to Megatron and back bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.convert import hf_to_megatron, megatron_to_hf
from megatron_probsft.checkpoint.hf.export import save_hf_weights
from megatron_probsft.checkpoint.megatron.saving import Save
from megatron_probsft.checkpoint.megatron.side_files import SideFiles
from megatron_probsft.checkpoint.megatron.torch_dist import load_model, model_state
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.families import families
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from tests.support.gradients import check_gradients
from tests.support.ranks import run_ranks
from tests.support.sizes import rows
from tests.support.tiny_families import CASES, save_tiny_family
from tests.support.whole_model import logits_of

LAYOUTS = [(1, 1), (2, 1), (1, 2), (1, 3), (2, 2)]  # TP, PP
Logits = Callable[[int, int], dict[str, torch.Tensor]]
MIXTURES = ("mixtral", "qwen3_moe")
TOKENS = torch.randint(0, 331, (60,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {case: save_tiny_family(root / case, case) for case in CASES}


def _theirs(folders: dict[str, Path], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as ours: the order of sums may depend on it
    found = {}
    for case, folder in folders.items():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager")
        with torch.no_grad():
            found[case] = model(torch.tensor([TOKENS])).logits[0]
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def in_fp64(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    return _theirs(folders, torch.float64)


@pytest.fixture(scope="module")
def in_fp32(folders: dict[str, Path]) -> dict[str, torch.Tensor]:
    return _theirs(folders, torch.float32)


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> Logits:
    """All families' logits on a layout, float32, in one start of the ranks."""

    @functools.cache
    def on(tp: int, pp: int) -> dict[str, torch.Tensor]:
        shards = run_ranks(tp * pp, _all_logits, folders, tp, pp)
        return {
            case: torch.cat([of[case] for of in shards if of[case].numel()], dim=1)[:, :331]
            for case in folders
        }

    return on


def _all_logits(folders: dict[str, Path], tp: int, pp: int) -> dict[str, torch.Tensor]:
    distributed.initialize(tp, pp)
    return {case: logits_of(folder, TOKENS, Parallelism(tp, pp, tp > 1)) for case, folder in folders.items()}


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_logits(
    case: str, layout: tuple[int, int], ours: Logits, in_fp64: dict[str, torch.Tensor],
    in_fp32: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    """Against fp64 for weights of any size; in fp32 where they are of the size that models start with.

    With weights seven times as large, transformers' own fp32 logits (of up to 6) are up to 2e-5 from fp64's.
    """
    found = ours(*layout)[case]
    assert (found - in_fp64[case]).abs().max() < 1e-5 * in_fp64[case].abs().max()
    if CASES[case][1].get("initializer_range") == 0.02:
        assert (found - in_fp32[case]).abs().max() < 1e-5


@pytest.mark.parametrize("case", [case for case, (kind, _) in CASES.items() if kind not in MIXTURES])
def test_the_same_operations_give_the_same_bits(
    case: str, folders: dict[str, Path], ours: Logits, in_fp32: dict[str, torch.Tensor]
) -> None:
    """Ours stack q, k, v and gate, up: not everywhere do the rows of a stacked product stay as they were."""
    alone = ours(1, 1)[case]
    assert torch.equal(ours(1, 2)[case], alone)
    assert torch.equal(ours(1, 3)[case], alone)
    if _stacking_changes_nothing(load_file(folders[case] / "model.safetensors")):
        assert torch.equal(alone, in_fp32[case])


def _stacking_changes_nothing(weights: dict[str, torch.Tensor]) -> bool:
    torch.manual_seed(0)
    for name in [name for name in weights if name.endswith(("q_proj.weight", "gate_proj.weight"))]:
        part, others = ("q_", ("q_", "k_", "v_")) if "q_proj" in name else ("gate_", ("gate_", "up_"))
        stack = [weights[name.replace(part, other)] for other in others]
        states = torch.randn(len(TOKENS), stack[0].shape[1])
        alone = torch.cat([states @ weight.T for weight in stack], dim=1)
        if not torch.equal(states @ torch.cat(stack).T, alone):
            return False
    return True


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
        model = build_model(hf, config)
        load_model(model, checkpoint)
        content = {"model": model_state(model), "iteration": 0, "consumed_samples": 0}
        Save(root / case / "trained", 0, content, SideFiles(hf.folder)).finish()
        save_hf_weights(model, hf, root / case / "exported")


def _back_from_there(folders: dict[str, Path], root: Path) -> None:
    distributed.initialize()
    for case in folders:
        megatron_to_hf(root / case / "trained", root / case / "back again")


@pytest.mark.size("test")
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


# Every family, with sequence parallelism, which moves the all-reduces, and without where it may be left out.
STEPS = [
    ("Llama 3.2", False), ("Llama 3.2", True), ("Mistral", False), ("Mistral", True), ("Qwen2.5-Math", False),
    ("Qwen2.5-Math", True), ("Qwen3", False), ("Qwen3", True), ("Mixtral", True), ("Qwen3-MoE", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "sequence_parallel"),
    rows(STEPS, fast=[("Llama 3.2", False)], rare=[("Mistral", False), ("Qwen2.5-Math", True)]),
)
def test_gradients(case: str, sequence_parallel: bool, tmp_path: Path) -> None:
    model = save_tiny_family(tmp_path / "model", case, num_hidden_layers=2)
    check_gradients(tmp_path, model, sequence_parallel=sequence_parallel)


def test_every_family_is_tested(folders: dict[str, Path]) -> None:
    tested = {read_hf_model(folder).family.name for folder in folders.values()}
    assert tested == {family.name for family in families()}
    assert tested == {read_hf_model(folders[case]).family.name for case, _ in STEPS}
