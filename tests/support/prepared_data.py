"""Prepared data of a domain: made, and read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from megatron_probsft.domains.preparing.preparation import Preparation
from megatron_probsft.domains.preparing.preparation import prepare as prepare_folder


def prepare(*asked: Any, **more: Any) -> dict[str, Any]:
    """The card of a preparation with these settings."""
    return prepare_folder(Preparation(*asked, **more))


def rows_of(folder: Path, part: str) -> list[dict[str, Any]]:
    """The rows of one of its files."""
    return pq.read_table(folder / f"{part}.parquet").to_pylist()
