"""Where Transformer Engine's layers serve, how a broken one is told, and models without storage on a GPU."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from megatron_probsft.models import build
from megatron_probsft.models.hf_model import read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime import distributed
from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.imports import transformer_engine_import
from tests.support.ranks import run_ranks
from tests.support.tiny_families import save_tiny_family

TOLD = r"^Transformer Engine is installed, but cannot be imported \(ImportError: undefined symbol: nvte\): "


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that fails as Transformer Engine's own parts do; it hides that from who imports it alone."""
    package = tmp_path / "transformer_engine"
    (package / "pytorch").mkdir(parents=True)
    (package / "__init__.py").write_text("try:\n    from . import pytorch\nexcept ImportError:\n    pass\n")
    (package / "pytorch" / "__init__.py").write_text("raise ImportError('undefined symbol:\\n nvte')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformer_engine"]:
        monkeypatch.delitem(sys.modules, name)
    build._refuse_broken_transformer_engine.cache_clear()
    return package


def test_none_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    build._refuse_broken_transformer_engine.cache_clear()
    monkeypatch.setattr(build, "HAVE_TE", False)
    for gpu in (False, True):
        monkeypatch.setattr(build, "has_gpu", lambda gpu=gpu: gpu)
        assert not build.use_transformer_engine()


def test_a_broken_one_is_told_where_there_is_a_gpu(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "HAVE_TE", False)
    monkeypatch.setattr(build, "has_gpu", lambda: False)
    assert not build.use_transformer_engine()
    monkeypatch.setattr(build, "has_gpu", lambda: True)
    for _ in range(2):
        with pytest.raises(UserError, match=TOLD) as caught:
            build.use_transformer_engine()
        assert "\n" not in str(caught.value)


def test_what_megatron_does_not_expect_is_told(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its extension for torch is missing, or a library of the system's."""
    (broken / "__init__.py").write_text("raise FileNotFoundError('Could not find shared object file')\n")
    monkeypatch.setattr(transformer_engine_import, "has_gpu", lambda: True)
    with (
        pytest.raises(UserError, match=r"\(FileNotFoundError: Could not find shared object file\)"),
        transformer_engine_import.guarded_import(),
    ):
        importlib.import_module("transformer_engine")
    with pytest.raises(ZeroDivisionError), transformer_engine_import.guarded_import():
        raise ZeroDivisionError


def test_it_is_not_imported_without_a_gpu(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    monkeypatch.delitem(sys.modules, "transformer_engine")  # both undone afterwards
    monkeypatch.setattr(transformer_engine_import, "has_gpu", lambda: False)
    with transformer_engine_import.guarded_import(), pytest.raises(ImportError):
        importlib.import_module("transformer_engine")


def test_float32_is_for_local_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "HAVE_TE", True)
    monkeypatch.setattr(build, "has_gpu", lambda: True)
    assert build.transformer_engine_computes(torch.bfloat16)
    assert not build.transformer_engine_computes(torch.float32)


def _devices(folders: list[Path]) -> list[set[str]]:
    """The devices of parameters and buffers, of models without storage, as on a machine with a GPU."""
    distributed.initialize()

    def allocates() -> torch.device:
        raise AssertionError("a model without storage asks for the GPU")

    build.has_gpu = lambda: True
    torch.cuda.current_device = allocates  # type: ignore[assignment]
    found = []
    for folder in folders:
        hf = read_hf_model(folder)
        config = build.transformer_config(hf.shape, Parallelism(), torch.float32)
        assert not config.use_cpu_initialization
        (chunk,) = build.build_model(hf, config, on_meta=True)
        assert not config.use_cpu_initialization
        found.append({tensor.device.type for tensor in (*chunk.parameters(), *chunk.buffers())})
    return found


def test_models_without_storage_stay_so_where_there_is_a_gpu(tiny_qwen2: Path, tmp_path: Path) -> None:
    mixture = save_tiny_family(tmp_path / "moe", "Qwen3-MoE", num_hidden_layers=1)
    (found,) = run_ranks(1, _devices, [tiny_qwen2, mixture])
    assert found == [{"meta"}, {"meta"}]
