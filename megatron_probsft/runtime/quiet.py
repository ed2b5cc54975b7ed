"""Programs leave out what libraries say about a use or a machine that is meant to be so."""

from __future__ import annotations

import logging
import warnings

_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Megatron-Core and torch say these at import where there is no GPU.
    ("(Transformer Engine and )?Apex (are|is) not installed", Warning),
    ("invalid escape sequence", SyntaxWarning),
    ("full scope is deprecated", Warning),
    ("MimoModelConfig is experimental", Warning),
    # Megatron-Core 0.19.2 uses these names, and so do we while torch 2.11 is supported.
    ("`torch.distributed.*` is deprecated", FutureWarning),
)
_LOGGERS = (
    "torch.utils.cpp_extension",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.dist_checkpointing.strategies",
)


def quiet_libraries() -> None:
    """Leave out, in this process, the warnings and log lines of libraries that tell a user nothing.

    Programs do so before they import those libraries (`one_line_errors` does it for them); importing this
    package never does, as warnings and loggers belong to whoever imports it.
    """
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for category in (UserWarning, FutureWarning):  # of torch's loader, about how Megatron-Core calls it
        warnings.filterwarnings("ignore", category=category, module=r"torch\.distributed\.checkpoint")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
