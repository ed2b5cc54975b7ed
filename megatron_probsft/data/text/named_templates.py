"""Prompts with fixed text around them, by name: those of arXiv 2510.00526's public code.

The names are that code's where it has one. A template spells its special tokens, BOS included, so nothing is
added to it; a response ends with the tokenizer's EOS, and generation with it. Which one belongs to a domain
and a model family says `data.domains.templates`.

Names that end in -paper give what that code's models really saw, which differs between the sides: it
generates from another text than it trains on, or lets vLLM put the tokenizer's BOS before the spelled one.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from megatron_probsft.runtime.errors import UserError

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_ASSISTANT = "You are a helpful assistant."
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # as Llama 3.2's chat template
_FIGLET = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it "
    "represents and output only that without any explanations or additional text."
)


@dataclass(frozen=True)
class _Text:
    before: str
    after: str

    def around(self, inner: _Text) -> _Text:
        """This one, with `inner` as its prompt."""
        return _Text(self.before + inner.before, inner.after + self.after)


@dataclass(frozen=True)
class NamedTemplate:
    """Text around a prompt, up to where the response or the generation starts."""

    trained: _Text
    generated: _Text
    tokenizer_adds_bos: bool = False  # in generation, before the text, if it is the tokenizer's way

    def training_text(self, prompt: str) -> str:
        """What a response is trained after."""
        return self.trained.before + prompt + self.trained.after

    def generation_text(self, prompt: str) -> str:
        """What is generated from."""
        return self.generated.before + prompt + self.generated.after

    def special_tokens(self) -> list[str]:
        """The special tokens it spells, `<|…|>` and DeepSeek's `<｜…｜>`."""
        text = self.training_text("") + self.generation_text("")
        return list(dict.fromkeys(re.findall("<[|｜].+?[|｜]>", text)))


def _chatml(system: str, after: str) -> _Text:
    return _Text(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        f"{after}<|im_end|>\n<|im_start|>assistant\n",
    )


def _llama3(bos: str, system: str, after: str, between: str = "") -> _Text:
    """`between` stands after each <|eot_id|>."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    return _Text(
        f"{bos}{header('system')}{system}<|eot_id|>{between}{header('user')}",
        f"{after}<|eot_id|>{between}{header('assistant')}",
    )


def _deepseek(system: str, after: str) -> _Text:
    return _Text(f"<｜begin▁of▁sentence｜>{system}User: ", f"{after}\n\nAssistant:")


def _one(text: _Text) -> NamedTemplate:
    return NamedTemplate(text, text)


_BOS = "<|begin_of_text|>"
_LLAMA_MATH = _llama3(_BOS, _ASSISTANT, f"\n{_BOXED}", "\n")
_LLAMA_MEDICAL = _llama3(_BOS * 2, _DATES, f"\n{_BOXED}")
_LLAMA_FIGLET = _llama3(_BOS * 2, _FIGLET, "")
_DEEPSEEK_MATH = _deepseek("", f"\n{_BOXED}")
_MATH_COT = _chatml(_BOXED, "")

NAMED_TEMPLATES = {
    # Mathematics.
    "qwen-boxed": _one(_chatml(_ASSISTANT, f"\n{_BOXED}")),  # of medicine too, as in the paper
    "qwen25-math-cot": _one(_MATH_COT),  # the chat template of Qwen2.5-Math
    "llama-base-boxed-with-bos": _one(_LLAMA_MATH),
    "deepseek-math": _one(_DEEPSEEK_MATH),
    # Medicine.
    "llama-medical": _one(_llama3(_BOS, _DATES, f"\n{_BOXED}")),
    "deepseek-medical": _one(_Text("<｜begin▁of▁sentence｜>User: ", f"\n{_BOXED}\n\nAssistant:\n")),
    # Figlet puzzles.
    "qwen-figlet": _one(_chatml(_FIGLET, "\n")),
    "llama-figlet": _one(_llama3(_BOS, _FIGLET, "")),
    "deepseek-figlet": _one(_deepseek(f"{_FIGLET}\n\n", "")),  # its own form of a conversation
    # As the paper's code has it. Qwen2.5-Math trains on its chat template and is evaluated with another.
    "qwen-math-paper": NamedTemplate(_MATH_COT, _chatml(_ASSISTANT, f"\n{_BOXED}")),
    "llama-math-paper": NamedTemplate(_LLAMA_MATH, _LLAMA_MATH, tokenizer_adds_bos=True),
    "deepseek-math-paper": NamedTemplate(_DEEPSEEK_MATH, _DEEPSEEK_MATH, tokenizer_adds_bos=True),
    # Prompts prepared with two BOS; in training that of mathematics is put around them.
    "llama-medical-paper": NamedTemplate(
        _LLAMA_MATH.around(_LLAMA_MEDICAL), _LLAMA_MEDICAL, tokenizer_adds_bos=True
    ),
    "llama-figlet-paper": NamedTemplate(
        _LLAMA_MATH.around(_LLAMA_FIGLET), _LLAMA_FIGLET, tokenizer_adds_bos=True
    ),
}

TEMPLATES = ("chat", "plain", *NAMED_TEMPLATES)


def check_template_name(template: str) -> None:
    """UserError unless there is such a template."""
    if template not in TEMPLATES:
        near = difflib.get_close_matches(template, TEMPLATES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--template {template} is unknown: use one of {', '.join(TEMPLATES)}{hint}")
