"""The ranges of pyproject.toml fit the pins in requirements/, and the container takes its vLLM from these."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins(variant: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"constraints-{variant}.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_every_requirement_is_a_range_around_its_pin(variant: str) -> None:
    found = pins(variant)
    other = "vllm-cuda" if variant == "cpu" else "vllm-cpu"
    extras = [text for name, texts in EXTRAS.items() if name != other for text in texts]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        assert found[canonicalize_name(requirement.name)] in requirement.specifier, text
        assert not [one for one in requirement.specifier if one.operator == "=="], text


def test_the_container_takes_vllm_as_pinned() -> None:
    (pattern, file) = re.findall(r"\$\(grep '(.*)' (\S+)\)", (ROOT / "Dockerfile").read_text())[0]
    lines = [line for line in (ROOT / file).read_text().splitlines() if re.search(pattern, line)]
    assert lines == [f"vllm=={pins('cuda')['vllm']}"]
