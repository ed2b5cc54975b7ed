"""The template that a domain's prompts take in a model family."""

from __future__ import annotations

from typing import Any

from megatron_probsft.domains.domain import Domain
from megatron_probsft.domains.registry import get_domain
from megatron_probsft.runtime.errors import UserError

FAMILIES = ("chatml", "llama", "deepseek")
_TOKENS = {"llama": "<|start_header_id|>", "chatml": "<|im_start|>", "deepseek": "<｜begin▁of▁sentence｜>"}
"""A special token that tells the family, in the order in which they are asked for."""


def template_for(domain: str, family: str, paper: bool = False) -> str:
    """The name for --template, in training and in evaluation.

    With `paper` it reproduces what the paper's models saw on each side; the others give the same tokens on
    both, and one BOS at most. The two are one where that code does so too (Qwen: medical, figfont).

    Raises UserError: unknown domain or family; a family for which the domain, or with `paper` the paper, has
    no prompt.
    """
    chosen = get_domain(domain)
    if family not in FAMILIES:
        raise UserError(f"model family {family} is unknown: use one of {', '.join(FAMILIES)}")
    default = chosen.prompts.get(family) if chosen.prompts else "chat"
    if default is None:
        raise UserError(f"{domain} has no prompt for {family}: it has those of {', '.join(chosen.prompts)}")
    if not paper:
        return default
    if family not in chosen.paper_prompts:
        raise UserError(f"the paper has no prompt for {family} in {domain}: use its default, {default}")
    return chosen.paper_prompts[family]


def default_template(domain: Domain, tokenizer: Any) -> str:
    """The name for --template with this tokenizer, where none is given. UserError: there is none."""
    return template_for(domain.name, prompt_family(tokenizer)) if domain.prompts else "chat"


def prompt_family(tokenizer: Any) -> str:
    """`chatml`, `llama` (3 and later) or `deepseek`, by the tokenizer's special tokens.

    Raises UserError: a tokenizer with none of theirs, as base models before ChatML have it.
    """
    for family, token in _TOKENS.items():
        if tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id):
            return family
    known = ", ".join(f"{token} ({family})" for family, token in _TOKENS.items())
    raise UserError(f"the tokenizer is of no family that has templates: it has none of {known}")
