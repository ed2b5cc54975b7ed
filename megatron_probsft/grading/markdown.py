"""Text without the marks of Markdown and HTML that chat models put around their answers."""

from __future__ import annotations

import re

# A mark opens after no operand and closes before none, so that x_1, 2*3*4 and a**b stay what they are.
_EMPHASIS = re.compile(
    r"(?<![\w*)\]}^\\])(\*{1,3}|_{1,3}|~~|`{1,3})(?=\S)([^\n]{0,300}?[^\s\\])\1(?![\w*({\[\\])"
)
_PAIRED_TAG = re.compile(
    r"<(b|strong|i|em|u|code|mark|span|p)\b[^<>]{0,80}>([^<>]{0,300})</\1>", re.IGNORECASE
)
_RAISED = re.compile(r"<(sup|sub)>([^<>]{1,40})</\1>", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t]*#*$", re.MULTILINE)
_QUOTE = re.compile(r"^[ \t]{0,3}(?:>[ \t]+)+", re.MULTILINE)
_LEFT_OVER = re.compile(r"(?:^|(?<=\s))\*\*(?=\S)|(?<=\S)\*\*(?=[\s.,:;!?)]|$)", re.MULTILINE)


def without_markdown(text: str) -> str:
    """Return the text without emphasis, code marks, headings and quotation marks; mathematics is kept."""
    text = text.replace("\\*", "*")
    text = _QUOTE.sub("", _HEADING.sub(r"\1", _FENCE.sub("", text)))
    text = _RAISED.sub(lambda tag: f"{'^' if tag[1].lower() == 'sup' else '_'}{{{tag[2]}}}", text)
    for _ in range(3):  # ***bold and italic***, **`code`**
        shorter = _PAIRED_TAG.sub(r"\2", _EMPHASIS.sub(r"\2", text))
        if shorter == text:
            break
        text = shorter
    return _LEFT_OVER.sub("", text)
