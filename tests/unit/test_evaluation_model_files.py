"""What ends a generation of a base model, whose EOS is not the token that its template ends turns with."""

from __future__ import annotations

import pytest

from megatron_probsft.evaluation.model_files import ends_of_turn


class Tokenizer:
    """Special tokens of Qwen2.5 and Llama 3 at once."""

    chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    unk_token_id = 0

    def convert_tokens_to_ids(self, token: str) -> int:
        return {"<|im_end|>": 151645, "<|eot_id|>": 128009}.get(token, 0)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("qwen-boxed", {151645}), ("llama-math-paper", {128009}), ("deepseek-math", set()),
        ("chat", {151645}), ("plain", set()),
    ],
)  # fmt: skip
def test_ends_of_turn(template: str, ends: set[int]) -> None:
    assert ends_of_turn(Tokenizer(), template) == ends


def test_a_token_that_the_tokenizer_has_not() -> None:
    tokenizer = Tokenizer()
    tokenizer.unk_token_id = 151645
    assert ends_of_turn(tokenizer, "qwen-boxed") == set()
