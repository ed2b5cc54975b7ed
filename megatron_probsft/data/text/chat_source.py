"""A chat template's source is read for marks of turns, today's date and random draws."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols

from megatron_probsft.runtime.errors import UserError

_MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def prints_the_date(tokenizer: Any) -> bool:
    """Tell whether the chat template, if there is one, may show today's date."""
    template = tokenizer.chat_template
    return "strftime_now" in str(template or "")


@lru_cache(maxsize=64)
def has_marks(source: str) -> bool:
    """Tell whether the template marks what is generated, with {% generation %}."""
    return _MARKS.search(source) is not None


class _GenerationTag(Extension):
    """{% generation %}…{% endgeneration %}, for reading a template."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))


@lru_cache(maxsize=64)
def check_source(source: str) -> None:
    """Raise UserError if the template is no Jinja, or its rendering is not the same each time."""
    try:
        tree = jinja2.Environment(extensions=[_GenerationTag, loopcontrols]).parse(source)
    except jinja2.TemplateError as error:
        line = f", line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"the chat template is no Jinja template{line}: {error.message}") from None
    random = any(node.name == "random" for node in tree.find_all(nodes.Filter))
    if random or any(node.name == "lipsum" for node in tree.find_all(nodes.Name)):
        raise UserError("the chat template draws at random: its tokens would be others each time")
