#!/usr/bin/env python3
"""Install megatron_probsft beside what an NVIDIA PyTorch image brings, which stays as it is.

    python3 tools/install_in_image.py [options of `uv pip install`, such as --dry-run]

The Python that runs this receives the package. PyPI's torch would replace the image's, for which Transformer
Engine, Apex and flash-attn were built, and a version like 2.10.0a0 is below any `torch>=2.10` (PEP 440): so
the image's versions of these are overrides of every requirement. Other packages of the image stay where our
ranges take them; what it lacks comes in the version that we test (requirements/constraints-cuda.txt).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements"
OLDEST_TORCH = (2, 8)
# What extensions of the image are compiled against, and these extensions.
KEPT = re.compile(
    r"(pytorch-)?(torch|triton)|torch[a-z]+|numpy|transformer-engine.*|apex|flash-attn.*|nvidia-.*"
)
# Older images have numpy 1, which later versions of these refuse at their import only.
WITH_NUMPY_1 = ("pyarrow<26", "pandas<3")
PACKAGE = f"{ROOT}[quickstart,domains,dev]"


def installed() -> dict[str, str]:
    """Return the version of every package that this Python sees, by its normalised name."""
    return {normalised(each.name): each.version for each in distributions() if each.name}


def normalised(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def kept(packages: dict[str, str]) -> dict[str, str]:
    """Return those of the packages that no installation may change."""
    return {name: version for name, version in sorted(packages.items()) if KEPT.fullmatch(name)}


def problem(packages: dict[str, str]) -> str | None:
    """Return why the package cannot be installed beside these, if it cannot."""
    if "torch" not in packages:
        return "this Python has no torch: it is no NVIDIA PyTorch image; elsewhere, `make setup` installs all"
    numbers = re.match(r"(\d+)\.(\d+)", packages["torch"])
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return f"torch {packages['torch']} is too old: take an image with torch {oldest} (25.06) or newer"
    return None


def command(packages: dict[str, str], folder: Path, options: list[str]) -> list[str]:
    """Return uv's command line. Its files of overrides and constraints are written into `folder`."""
    overrides = [f"{name}=={version}" for name, version in kept(packages).items()]
    ours = [
        line
        for line in (REQUIREMENTS / "overrides-cuda.txt").read_text().splitlines()
        if not KEPT.fullmatch(_name(line))
    ]
    (folder / "overrides.txt").write_text("\n".join([*overrides, *ours, ""]))
    tested = (REQUIREMENTS / "constraints-cuda.txt").read_text().splitlines()
    lacking = [line for line in tested if _name(line) not in packages and not KEPT.fullmatch(_name(line))]
    if packages.get("numpy", "").startswith("1."):
        limited = {_name(line) for line in WITH_NUMPY_1}
        lacking = [line for line in lacking if _name(line) not in limited] + [*WITH_NUMPY_1]
    (folder / "constraints.txt").write_text("\n".join([*lacking, ""]))
    return [
        *[
            os.environ.get("UV", "uv"),
            "pip",
            "install",
            "--python",
            sys.executable,
            "--break-system-packages",
        ],
        *["--override", str(folder / "overrides.txt"), "--constraint", str(folder / "constraints.txt")],
        *["--editable", PACKAGE, *options],
    ]


def _name(requirement: str) -> str:
    return normalised(re.split(r"[ =<>!;\[#]", requirement, maxsplit=1)[0])


def main(options: list[str]) -> int:
    """Install the package, say what stayed, and return the status of the process."""
    if {"-h", "--help"} & {*options}:
        print(f"usage: install_in_image.py [options of uv pip install]\n\n{__doc__}")
        return 0
    before = installed()
    reason = problem(before)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print("kept:", ", ".join(f"{name} {version}" for name, version in kept(before).items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        status = subprocess.run(command(before, Path(folder), options), check=False).returncode
    changed = sorted(name for name, version in kept(before).items() if installed().get(name) != version)
    if changed:
        print(f"error: the installation changed {', '.join(changed)}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
