"""Prompts with fixed text around them, by name: those of arXiv 2510.00526's public code.

The names are that code's where it has one. A template spells its special tokens, BOS included, so nothing is
added to it; a response ends with the tokenizer's EOS, and generation with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_ASSISTANT = "You are a helpful assistant."
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # as Llama 3.2's chat template
_FIGLET = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it "
    "represents and output only that without any explanations or additional text."
)


@dataclass(frozen=True)
class NamedTemplate:
    before: str
    after: str

    def render(self, prompt: str) -> str:
        """The text up to where generation starts."""
        return self.before + prompt + self.after

    def special_tokens(self) -> list[str]:
        """The special tokens it spells, `<|…|>` and DeepSeek's `<｜…｜>`."""
        return list(dict.fromkeys(re.findall("<[|｜].+?[|｜]>", self.before + self.after)))


def _chatml(system: str, after: str) -> NamedTemplate:
    return NamedTemplate(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        f"{after}<|im_end|>\n<|im_start|>assistant\n",
    )


def _llama3(bos: str, system: str, after: str, between: str) -> NamedTemplate:
    """`between` stands after each <|eot_id|>."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    return NamedTemplate(
        f"{bos}{header('system')}{system}<|eot_id|>{between}{header('user')}",
        f"{after}<|eot_id|>{between}{header('assistant')}",
    )


_BOS = "<|begin_of_text|>"

NAMED_TEMPLATES = {
    # Mathematics. Qwen's models train on their own chat template, which qwen25-math-cot is for
    # Qwen2.5-Math, and are evaluated with qwen-boxed; the others use one for both.
    "qwen-boxed": _chatml(_ASSISTANT, f"\n{_BOXED}"),  # of medicine too
    "qwen25-math-cot": _chatml(_BOXED, ""),
    "llama-base-boxed-with-bos": _llama3(_BOS, _ASSISTANT, f"\n{_BOXED}", "\n"),
    "deepseek-math": NamedTemplate("<｜begin▁of▁sentence｜>User: ", f"\n{_BOXED}\n\nAssistant:"),
    # Medicine. Two BOS, here and below, are what its models saw.
    "llama-medical": _llama3(_BOS * 2, _DATES, f"\n{_BOXED}", ""),
    # Figlet puzzles.
    "qwen-figlet": _chatml(_FIGLET, "\n"),
    "llama-figlet": _llama3(_BOS * 2, _FIGLET, "", ""),
}
