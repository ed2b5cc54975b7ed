"""The prompts of every domain and model family, written out, in training and in evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.text.templates import encode_pair, encode_prompt
from megatron_probsft.domains.registry import domains
from megatron_probsft.domains.templates import FAMILIES, prompt_family, template_for
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import save_tiny_tokenizer

# BOS first, EOS last.
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]

QWEN_BOXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nQ?\nPlease reason step by step, and put your final answer within \\boxed{}."
    "<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QWEN_MATH_CHAT = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\nQ?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QWEN_FIGLET = (
    "<|im_start|>system\nYou are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, "
    "identify the word it represents and output only that without any explanations or additional text."
    "<|im_end|>\n<|im_start|>user\nQ?\n<|im_end|>\n<|im_start|>assistant\n"
)
LLAMA_MATH = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>\n"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "Q?\nPlease reason step by step, and put your final answer within \\boxed{}.<|eot_id|>\n"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_MEDICAL = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "Q?\nPlease reason step by step, and put your final answer within \\boxed{}.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_FIGLET = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are an expert at decoding Figlet "
    "Font ASCII art. When given Figlet Font text, identify the word it represents and output only that "
    "without any explanations or additional text.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    "Q?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_MEDICAL_PAPER_TRAINING = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>\n"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<|begin_of_text|><|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "Q?\nPlease reason step by step, and put your final answer within \\boxed{}.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "\nPlease reason step by step, and put your final answer within \\boxed{}.<|eot_id|>\n"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
LLAMA_FIGLET_PAPER_TRAINING = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant.<|eot_id|>\n"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "<|begin_of_text|><|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are an expert at "
    "decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it represents and output "
    "only that without any explanations or additional text.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n"
    "Q?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "\nPlease reason step by step, and put your final answer within \\boxed{}.<|eot_id|>\n"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
DEEPSEEK_MATH = (
    "<｜begin▁of▁sentence｜>User: Q?\nPlease reason step by step, and put your final answer within \\boxed{}."
    "\n\nAssistant:"
)
DEEPSEEK_MEDICAL = (
    "<｜begin▁of▁sentence｜>User: Q?\nPlease reason step by step, and put your final answer within \\boxed{}."
    "\n\nAssistant:\n"
)
DEEPSEEK_FIGLET = (
    "<｜begin▁of▁sentence｜>You are an expert at decoding Figlet Font ASCII art. When given Figlet Font "
    "text, identify the word it represents and output only that without any explanations or additional "
    "text.\n\nUser: Q?\n\nAssistant:"
)
LLAMA_BOS, DEEPSEEK_BOS = "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"

DEFAULT = {  # in training and in evaluation
    ("math", "chatml"): QWEN_BOXED,
    ("math", "llama"): LLAMA_MATH,
    ("math", "deepseek"): DEEPSEEK_MATH,
    ("medical", "chatml"): QWEN_BOXED,
    ("medical", "llama"): LLAMA_MEDICAL,
    ("medical", "deepseek"): DEEPSEEK_MEDICAL,
    ("figfont", "chatml"): QWEN_FIGLET,
    ("figfont", "llama"): LLAMA_FIGLET,
    ("figfont", "deepseek"): DEEPSEEK_FIGLET,
}
PAPER = {  # (in training, in evaluation with what the tokenizer puts before it)
    ("math", "chatml"): (QWEN_MATH_CHAT, QWEN_BOXED),
    ("math", "llama"): (LLAMA_MATH, LLAMA_BOS + LLAMA_MATH),
    ("math", "deepseek"): (DEEPSEEK_MATH, DEEPSEEK_BOS + DEEPSEEK_MATH),
    ("medical", "chatml"): (QWEN_BOXED, QWEN_BOXED),
    ("medical", "llama"): (LLAMA_MEDICAL_PAPER_TRAINING, LLAMA_BOS * 2 + LLAMA_MEDICAL),
    ("figfont", "chatml"): (QWEN_FIGLET, QWEN_FIGLET),
    ("figfont", "llama"): (LLAMA_FIGLET_PAPER_TRAINING, LLAMA_BOS * 2 + LLAMA_FIGLET),
}


def tokenizer_of(family: str, folder: Path) -> Any:
    """A small one with the family's special tokens, which adds BOS to a text as the family's does."""
    tokenizer = save_tiny_tokenizer(folder)
    if family == "chatml":
        return tokenizer
    special = LLAMA if family == "llama" else DEEPSEEK
    tokenizer.add_special_tokens(
        {"bos_token": special[0], "eos_token": special[-1], "extra_special_tokens": special[1:-1]}
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{special[0]} $A", special_tokens=[(special[0], tokenizer.bos_token_id)]
    )
    assert tokenizer("Q?")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def trained_after(tokenizer: Any, template: str) -> list[int]:
    tokens, trained = encode_pair(tokenizer, "Q?", "it", template)
    return [token for token, flag in zip(tokens, trained, strict=True) if not flag]


@pytest.mark.parametrize(("domain", "family"), DEFAULT)
def test_training_and_evaluation_have_the_same_tokens_and_one_bos(
    domain: str, family: str, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(family, tmp_path)
    template = template_for(domain, family)
    expected = tokens_of(tokenizer, DEFAULT[domain, family])
    assert encode_prompt(tokenizer, "Q?", template) == expected
    assert trained_after(tokenizer, template) == expected
    if family != "chatml":
        assert expected[0] == tokenizer.bos_token_id
        assert expected.count(tokenizer.bos_token_id) == 1
    named = NAMED_TEMPLATES[template]
    assert named.training_text("Q?") == named.generation_text("Q?") == DEFAULT[domain, family]


@pytest.mark.parametrize(("domain", "family"), PAPER)
def test_the_papers_prompts_as_its_models_saw_them(domain: str, family: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(family, tmp_path)
    template = template_for(domain, family, paper=True)
    training, evaluation = PAPER[domain, family]
    assert trained_after(tokenizer, template) == tokens_of(tokenizer, training)
    assert encode_prompt(tokenizer, "Q?", template) == tokens_of(tokenizer, evaluation)


def test_how_many_bos_the_papers_models_saw(tmp_path: Path) -> None:
    counts = {}
    for domain, family in PAPER:
        tokenizer = tokenizer_of(family, tmp_path / domain / family)
        if family != "chatml":
            template = template_for(domain, family, paper=True)
            sides = trained_after(tokenizer, template), encode_prompt(tokenizer, "Q?", template)
            counts[domain, family] = tuple(side.count(tokenizer.bos_token_id) for side in sides)
    assert counts == {
        ("math", "llama"): (1, 2), ("math", "deepseek"): (1, 2),
        ("medical", "llama"): (3, 3), ("figfont", "llama"): (3, 3),
    }  # fmt: skip


def test_a_tokenizer_without_bos_of_its_own_adds_none(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("llama", tmp_path)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    assert encode_prompt(tokenizer, "Q?", "llama-math-paper") == tokens_of(tokenizer, LLAMA_MATH)


def test_names_that_there_are(tmp_path: Path) -> None:
    pairs = [(domain, family) for domain in domains() for family in FAMILIES]
    assert set(DEFAULT) == set(pairs)
    names = {template_for(*pair) for pair in pairs} | {template_for(*pair, paper=True) for pair in PAPER}
    assert names | {"qwen25-math-cot"} == set(NAMED_TEMPLATES)
    for domain in ("medical", "figfont"):
        with pytest.raises(UserError, match=f"the paper has no prompt for deepseek in {domain}: use its def"):
            template_for(domain, "deepseek", paper=True)
    with pytest.raises(UserError, match="domain law is unknown: use one of math, medical, figfont"):
        template_for("law", "llama")
    with pytest.raises(UserError, match="family qwen is unknown: use one of chatml, llama, deepseek"):
        template_for("math", "qwen")
    for family in FAMILIES:
        tokenizer = tokenizer_of(family, tmp_path / family)
        if family != "chatml":  # which the small tokenizer has of its own
            tokenizer = without_chatml(tokenizer)
        assert prompt_family(tokenizer) == family


def without_chatml(tokenizer: Any) -> Any:
    class Other:
        unk_token_id = None

        def convert_tokens_to_ids(self, token: str) -> int | None:
            return None if token.startswith("<|im_") else tokenizer.convert_tokens_to_ids(token)

    return Other()


def test_a_tokenizer_of_no_family() -> None:
    class Other:
        unk_token_id = 0

        def convert_tokens_to_ids(self, token: str) -> int:
            return 0

    with pytest.raises(
        UserError, match=r"of no family that has templates: it has none of <\|start_header_id\|>"
    ):
        prompt_family(Other())
