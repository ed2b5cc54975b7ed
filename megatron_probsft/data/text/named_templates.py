"""Prompts with fixed text around them, by the names that `--template` takes.

A template spells its special tokens, BOS included, so nothing is added to it; a response ends with the
tokenizer's EOS, and generation with it. The domains' files (`megatron_probsft/domains/`) hold the templates
and say which one belongs to which model family. What several of them need stands here.

Names that end in -paper give what the models of arXiv 2510.00526's public code really saw. That differs
between the sides: the code generates from another text than it trains on, or lets vLLM put the tokenizer's
BOS before the spelled one. The other names are that code's too, where it has one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.suggestions import nearest

ASSISTANT = "You are a helpful assistant."
BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
LLAMA_BOS = "<|begin_of_text|>"
_DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"


@dataclass(frozen=True)
class _Text:  # tokens are cached under this name and those of the fields: renaming them loses every cache
    before: str
    after: str

    def around(self, inner: _Text) -> _Text:
        """This text with `inner` as its prompt."""
        return _Text(self.before + inner.before, inner.after + self.after)


@dataclass(frozen=True)
class NamedTemplate:
    """Text around a prompt, up to where the response or the generation starts."""

    trained: _Text
    generated: _Text
    tokenizer_adds_bos: bool = False  # in generation, before the text, if it is the tokenizer's way

    @classmethod
    def of(cls, text: _Text) -> NamedTemplate:
        """A template with the same text in training and in generation."""
        return cls(text, text)

    def training_text(self, prompt: str) -> str:
        """The text that a response is trained after."""
        return self.trained.before + prompt + self.trained.after

    def generation_text(self, prompt: str) -> str:
        """The text that a model continues when it generates."""
        return self.generated.before + prompt + self.generated.after

    def special_tokens(self) -> list[str]:
        """The special tokens it spells, `<|…|>` and DeepSeek's `<｜…｜>`."""
        text = self.training_text("") + self.generation_text("")
        return list(dict.fromkeys(re.findall("<[|｜].+?[|｜]>", text)))


def chatml(system: str, after: str) -> _Text:
    """ChatML, as Qwen's chat template renders it; `after` follows the prompt in the user's turn."""
    return _Text(
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n",
        f"{after}<|im_end|>\n<|im_start|>assistant\n",
    )


def llama3(system: str, after: str, *, bos: str = LLAMA_BOS, between: str = "") -> _Text:
    """Llama 3's headers; `after` follows the prompt, `between` each <|eot_id|>."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    return _Text(
        f"{bos}{header('system')}{system}<|eot_id|>{between}{header('user')}",
        f"{after}<|eot_id|>{between}{header('assistant')}",
    )


def deepseek(system: str, after: str, *, end: str = "") -> _Text:
    """DeepSeek's conversation; `after` follows the prompt, `end` the word that starts the answer."""
    return _Text(f"{_DEEPSEEK_BOS}{system}User: ", f"{after}\n\nAssistant:{end}")


QWEN_BOXED = NamedTemplate.of(chatml(ASSISTANT, f"\n{BOXED}"))
LLAMA_BOXED = NamedTemplate.of(llama3(ASSISTANT, f"\n{BOXED}", between="\n"))


def llama_paper(system: str, after: str) -> NamedTemplate:
    """The prompt of the paper's code outside mathematics: prepared with two BOS, and in training with that of
    mathematics around it."""
    prepared = llama3(system, after, bos=LLAMA_BOS * 2)
    return NamedTemplate(LLAMA_BOXED.trained.around(prepared), prepared, tokenizer_adds_bos=True)


_OF_THE_TOKENIZER = ("chat", "plain")
NAMED_TEMPLATES: dict[str, NamedTemplate] = {}
"""All templates by name, those of the paper's code last; importing the package fills it from the domains."""


def add_templates(templates: Mapping[str, NamedTemplate]) -> None:
    """Make templates known by their names. ValueError: a name that stands for another text already."""
    for name, template in templates.items():
        if name in _OF_THE_TOKENIZER or NAMED_TEMPLATES.get(name, template) != template:
            raise ValueError(f"template {name}: another template has this name")
    if templates.keys() - NAMED_TEMPLATES.keys():
        everything = {**NAMED_TEMPLATES, **templates}
        NAMED_TEMPLATES.clear()
        NAMED_TEMPLATES.update(sorted(everything.items(), key=lambda item: item[0].endswith("-paper")))


def template_names() -> tuple[str, ...]:
    """Everything that --template takes."""
    return (*_OF_THE_TOKENIZER, *NAMED_TEMPLATES)


def check_template_name(template: str) -> None:
    """UserError unless there is such a template."""
    names = template_names()
    if template not in names:
        near = nearest(template, names)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"--template {template} is unknown: use one of {', '.join(names)}{hint}")
