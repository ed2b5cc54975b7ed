"""docs/flags.md is what the fields of the settings say."""

from __future__ import annotations

from pathlib import Path

from megatron_probsft.training.config.config import settings
from megatron_probsft.training.config.flags_page import page

PAGE = Path(__file__).parents[3] / "docs" / "flags.md"


def test_the_page_is_up_to_date() -> None:
    stale = "run: python -m megatron_probsft.training.config.flags_page > docs/flags.md"
    assert PAGE.read_text(encoding="utf-8") == page(), stale


def test_every_flag_is_there_with_a_whole_sentence() -> None:
    shown = page()
    for name, setting in settings().items():
        assert f"| `--{name.replace('_', '-')}`" in shown
        assert setting.flag.help[0].isupper() or setting.flag.help.startswith("--")
        assert setting.flag.help.endswith("."), name
