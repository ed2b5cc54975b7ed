"""A program that imports this first gets the libraries that it needs in two thirds of the time."""

from __future__ import annotations

import gc

# Collecting garbage while thousands of modules are made finds none, and takes a sixth of the time.
gc.disable()

from megatron_probsft.runtime.imports.transformer_engine_import import guarded_import  # noqa: E402
from megatron_probsft.runtime.megatron_patches import compile_decorators  # noqa: E402

with guarded_import(), compile_decorators.without_compilation():
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt  # noqa: F401

import transformers  # noqa: E402, F401

gc.enable()
