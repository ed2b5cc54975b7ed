"""Fused routers: there from 2.6 on, not used here."""

from __future__ import annotations

from typing import Any

from transformer_engine.stand_in import since

if not since("2.6"):
    raise ImportError("no router in this version")


def fused_topk_with_score_function(*_: Any, **__: Any) -> Any:
    raise NotImplementedError


fused_compute_score_for_moe_aux_loss = fused_moe_aux_loss = fused_topk_with_score_function
