"""Token stores for tests: the options by name, and nothing printed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from megatron_probsft.data.store.options import StoreOptions
from megatron_probsft.data.store.token_store import TokenStore, build_token_store


def build_store(
    files: Sequence[str],
    tokenizer: Any,
    *,
    cache_dir: str | Path,
    num_workers: int | None = None,
    log: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> TokenStore:
    """Call `build_token_store`; `options` are the fields of `StoreOptions`."""
    return build_token_store(
        files, tokenizer, StoreOptions(**options), cache_dir=cache_dir, num_workers=num_workers, log=log
    )
