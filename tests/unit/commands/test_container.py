"""The container, without an image: what NVIDIA's images bring stays, all else is found beside it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[3]
# Versions as public logs of these images show them.
IMAGES: dict[str, dict[str, str]] = {
    "25.06": {"torch": "2.8.0a0+5228986c39.nv25.06", "numpy": "1.26.4", "triton": "3.3.0"},
    "25.09": {"torch": "2.9.0a0+50eac811a6.nv25.09", "transformer_engine": "2.8.0"},
    "25.11": {"torch": "2.10.0a0+b558c986e8.nv25.11"},
    "25.12": {"torch": "2.10.0a0+b4e4ee81d3.nv25.12", "flash_attn": "2.7.4.post1+25.12"},
    "26.01": {"torch": "2.10.0a0+a36e1d39eb.nv26.01.42222806"},
    "26.02": {"torch": "2.11.0a0+eb65b36914.nv26.02", "numpy": "2.1.0", "pandas": "3.0.1", "triton": "3.6.0"},
    "26.03": {"torch": "2.11.0a0+a6c236b9fd.nv26.03.46836102"},
    "26.04": {"torch": "2.12.0a0+0291f960b6.nv26.04.48445190"},
    "26.05": {"torch": "2.12.0a0+5aff3928d8.nv26.05"},
    "26.07": {"torch": "2.13.0a0+nv26.07"},
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_in_image", ROOT / "tools" / "install_in_image.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("image", IMAGES)
def test_the_images_own_torch_is_taken(tool: ModuleType, image: str, tmp_path: Path) -> None:
    packages = {tool.normalised(name): version for name, version in IMAGES[image].items()}
    assert tool.problem(packages) is None
    tool.command(packages, tmp_path, [])
    overrides = [Requirement(line) for line in requirements(tmp_path / "overrides.txt")]
    for name in packages.keys() & {"torch", "numpy", "triton", "transformer-engine", "flash-attn"}:
        [override] = [one for one in overrides if tool.normalised(one.name) == name]
        assert override.specifier.contains(packages[name])
    constrained = {
        tool.normalised(Requirement(line).name) for line in requirements(tmp_path / "constraints.txt")
    }
    assert not constrained & packages.keys()
    assert not [name for name in constrained if tool.KEPT.fullmatch(name)]


def test_an_image_before_the_first_release_of_its_torch_is_below_any_range() -> None:
    # PEP 440, and why overrides are needed at all.
    assert not Requirement("torch>=2.11").specifier.contains(IMAGES["26.02"]["torch"], prereleases=True)
    assert Version(IMAGES["26.02"]["torch"]) < Version("2.11")


@pytest.mark.parametrize(
    ("packages", "reason"),
    [({}, "no torch"), ({"torch": "2.7.0a0+79aa17489c.nv25.04"}, "torch 2.7.0a0.* is too old.*25.06")],
)
def test_what_is_no_image_or_too_old_is_refused(
    tool: ModuleType, packages: dict[str, str], reason: str
) -> None:
    assert re.search(reason, tool.problem(packages))


def test_a_changed_torch_is_an_error(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = iter([{"torch": "2.11.0a0+x"}, {"torch": "2.13.0"}])
    monkeypatch.setattr(tool, "installed", lambda: next(seen))
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(tool.subprocess, "run", lambda *_, **__: done)
    assert tool.main([]) == 1
    assert "the installation changed torch" in capsys.readouterr().err


@pytest.mark.size("test")
@pytest.mark.parametrize("image", ["25.06", "26.02"])
def test_all_is_found_beside_an_image(image: str, tmp_path: Path) -> None:
    """The same steps as in the Dockerfile, in an environment whose `pip list` imitates the image's."""
    uv = shutil.which("uv", path=f"{ROOT / '.uv' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if uv is None:
        pytest.skip("uv is not here; `make setup` brings it")
    place = tmp_path / "image"
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, place], check=True)
    for name, version in IMAGES[image].items():
        info = place / "lib" / "python3.12" / "site-packages" / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("")
    run = subprocess.run(
        [place / "bin" / "python", ROOT / "tools" / "install_in_image.py", "--dry-run"],
        env={**os.environ, "UV": uv},
        capture_output=True,
        text=True,
    )
    if "error sending request" in run.stderr:
        pytest.skip("no package index can be reached")
    assert run.returncode == 0, run.stderr
    chosen = dict(re.findall(r"^ \+ ([\w-]+)==(\S+)$", run.stderr, re.MULTILINE))
    assert {"megatron-core", "transformers", "datasets", "pyarrow"} <= chosen.keys()
    assert not chosen.keys() & {"torch", "numpy", "triton"}
    assert not [name for name in chosen if name.startswith("nvidia")]
    # Pyarrow 26 refuses numpy 1 when it is imported.
    assert (Version(chosen["pyarrow"]) < Version("26")) == IMAGES[image].get("numpy", "2").startswith("1.")


def requirements(file: Path) -> list[str]:
    return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
