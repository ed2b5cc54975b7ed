"""Which named template a domain's prompts take in a model family."""

from __future__ import annotations

from typing import Any

from megatron_probsft.runtime.errors import UserError

# (default, as the paper's code has it; None where it has no prompt)
_NAMES: dict[tuple[str, str], tuple[str, str | None]] = {
    ("math", "chatml"): ("qwen-boxed", "qwen-math-paper"),
    ("math", "llama"): ("llama-base-boxed-with-bos", "llama-math-paper"),
    ("math", "deepseek"): ("deepseek-math", "deepseek-math-paper"),
    ("medical", "chatml"): ("qwen-boxed", "qwen-boxed"),
    ("medical", "llama"): ("llama-medical", "llama-medical-paper"),
    ("medical", "deepseek"): ("deepseek-medical", None),
    ("figfont", "chatml"): ("qwen-figlet", "qwen-figlet"),
    ("figfont", "llama"): ("llama-figlet", "llama-figlet-paper"),
    ("figfont", "deepseek"): ("deepseek-figlet", None),
}
DOMAINS = tuple(dict.fromkeys(domain for domain, _ in _NAMES))
FAMILIES = tuple(dict.fromkeys(family for _, family in _NAMES))
_TOKENS = {"llama": "<|start_header_id|>", "chatml": "<|im_start|>", "deepseek": "<｜begin▁of▁sentence｜>"}


def template_for(domain: str, family: str, paper: bool = False) -> str:
    """The name for --template, in training and in evaluation.

    With `paper` it reproduces what the paper's models saw on each side; the others give the same tokens on
    both, and one BOS at most. The two are one where that code does so too (Qwen: medical, figfont).

    Raises UserError: unknown domain or family; `paper` where the paper has no prompt.
    """
    if domain not in DOMAINS:
        raise UserError(f"domain {domain} is unknown: use one of {', '.join(DOMAINS)}")
    if family not in FAMILIES:
        raise UserError(f"model family {family} is unknown: use one of {', '.join(FAMILIES)}")
    default, of_paper = _NAMES[domain, family]
    if not paper:
        return default
    if of_paper is None:
        raise UserError(f"the paper has no prompt for {family} in {domain}: use its default, {default}")
    return of_paper


def family_of(tokenizer: Any) -> str:
    """`chatml`, `llama` (3 and later) or `deepseek`, by the tokenizer's special tokens.

    Raises UserError: a tokenizer with none of theirs, as base models before ChatML have it.
    """
    for family, token in _TOKENS.items():
        if tokenizer.convert_tokens_to_ids(token) not in (None, tokenizer.unk_token_id):
            return family
    known = ", ".join(f"{token} ({family})" for family, token in _TOKENS.items())
    raise UserError(f"the tokenizer is of no family that has templates: it has none of {known}")
