"""A named template is written as a chat template, so that a server shows the model what it trained on."""

from __future__ import annotations

import json
from typing import Any

from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES

_SOURCE = """\
{{#- What the model was trained on, --template {name}, and nothing else. -#}}
{{%- if not messages or messages | length > 2 or messages[0]['role'] != 'user'
    or messages[0]['content'] is not string -%}}
  {{{{- raise_exception({refusal}) -}}}}
{{%- elif messages | length == 1 -%}}
  {{{{- {generated.before} + messages[0]['content'] + {generated.after} -}}}}
{{%- elif messages[1]['role'] == 'assistant' and messages[1]['content'] is string
    and not add_generation_prompt -%}}
  {{{{- {trained.before} + messages[0]['content'] + {trained.after} + messages[1]['content'] + {eos} -}}}}
{{%- else -%}}
  {{{{- raise_exception({refusal}) -}}}}
{{%- endif -%}}
"""


def named_chat_template(tokenizer: Any, name: str) -> str:
    """Return the Jinja source of a named template.

    It takes one user message, whose tokens are those of `encode_prompt` (a BOS that the tokenizer adds there
    is spelled, since servers add none to a chat template), or that and the assistant's answer, as trained; it
    refuses anything else, which the model never saw.
    """
    named = NAMED_TEMPLATES[name]
    bos = _added_before(tokenizer) if named.tokenizer_adds_bos else ""
    return _SOURCE.format(
        name=name,
        refusal=_literal(f"this model was trained with --template {name}: give one user message, as text"),
        generated=_Literals(bos + named.generated.before, named.generated.after),
        trained=_Literals(named.trained.before, named.trained.after),
        eos=_literal(tokenizer.eos_token),
    )


class _Literals:
    """The two texts around a prompt, as Jinja strings."""

    def __init__(self, before: str, after: str) -> None:
        self.before, self.after = _literal(before), _literal(after)


def _literal(text: str) -> str:
    """Write a string of Jinja, which knows JSON's escapes."""
    return json.dumps(text, ensure_ascii=False)


def _added_before(tokenizer: Any) -> str:
    """Return the special tokens that the tokenizer puts before a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    added = encoded["special_tokens_mask"].index(0)
    return "".join(tokenizer.convert_ids_to_tokens(encoded["input_ids"][:added]))
