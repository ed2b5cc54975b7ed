"""Templates: the tokens are the tokenizer's own, and exactly the responses and their ends are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from megatron_probsft.data.text.named_templates import NAMED_TEMPLATES
from megatron_probsft.data.text.templates import encode_messages, encode_pair, encode_pairs, encode_prompt
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import CHATML, save_tiny_tokenizer

USER = {"role": "user", "content": "what is one and two?"}
GOOD = {"role": "assistant", "content": "it is three."}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """pad == EOS == <|im_end|>, the token that also ends every turn."""
    return save_tiny_tokenizer(tmp_path)


def add_specials(tokenizer: Any, pattern: str) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=pattern, special_tokens=[("<|endoftext|>", 0), ("<|im_end|>", 2)]
    )


def test_chat_prompt_is_what_the_tokenizer_renders(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, "what is one?", "chat")
    assert ids == tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is one?"}], add_generation_prompt=True, return_dict=False
    )
    assert tokenizer.decode(ids) == "<|im_start|>user\nwhat is one?<|im_end|>\n<|im_start|>assistant\n"


def test_plain_prompt_has_the_tokenizers_bos_but_never_its_eos(tokenizer: Any) -> None:
    bare = tokenizer("one and two", add_special_tokens=False)["input_ids"]
    assert encode_prompt(tokenizer, "one and two", "plain") == bare
    add_specials(tokenizer, "<|endoftext|> $A")
    assert encode_prompt(tokenizer, "one and two", "plain") == [0, *bare]
    add_specials(tokenizer, "<|endoftext|> $A <|im_end|>")
    assert tokenizer("one and two")["input_ids"] == [0, *bare, 2]
    assert encode_prompt(tokenizer, "one and two", "plain") == [0, *bare]
    assert encode_prompt(tokenizer, "one<|im_end|>", "plain")[-1] == 2  # the prompt's own


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_pair_trains_its_response_and_eos_by_position(tokenizer: Any, template: str) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    # The prompt holds the EOS token too, several times: it must not be trained.
    prompt, response = "one <|im_end|> two<|im_end|>", " three. it is"
    tokens, trained = encode_pair(tokenizer, prompt, response, template)
    answer = tokenizer(response, add_special_tokens=False)["input_ids"]
    assert [t for t, flag in zip(tokens, trained, strict=True) if flag] == [*answer, tokenizer.eos_token_id]
    assert sum(trained) == len(answer) + 1
    assert trained == sorted(trained)
    assert tokens[: -len(answer) - 1] == encode_prompt(tokenizer, prompt, template)


def test_special_tokens_of_the_tokenizer_stay_out_of_responses(tokenizer: Any) -> None:
    add_specials(tokenizer, "<|endoftext|> $A <|im_end|>")
    tokens, trained = encode_pair(tokenizer, "one", "two", "plain")
    assert (tokens.count(0), tokens.count(2)) == (1, 1)
    assert sum(trained) == len(tokenizer("two", add_special_tokens=False)["input_ids"]) + 1


@pytest.mark.parametrize("template", ["chat", "plain"])
def test_a_batch_is_the_same_as_one_by_one(tokenizer: Any, template: str) -> None:
    prompts, responses = ["one", "", "what is the sum\n\n"], ["it is", "\n three", "<|im_end|> é"]
    for pair, p, r in zip(
        encode_pairs(tokenizer, prompts, responses, template), prompts, responses, strict=True
    ):
        (start, untrained), (end, trained) = pair
        assert (untrained, trained) == (False, True)
        marks = [False] * len(start) + [True] * len(end)
        assert (start + end, marks) == encode_pair(tokenizer, p, r, template)


def test_a_single_turn_conversation_is_a_pair(tokenizer: Any) -> None:
    pair = encode_pair(tokenizer, USER["content"], "\nit is <|im_end|> ", "chat")
    message = {"role": "assistant", "content": "\nit is <|im_end|> "}
    assert encode_messages(tokenizer, [USER, message], "chat") == pair


def test_every_assistant_turn_is_trained_and_nothing_else(tokenizer: Any) -> None:
    system = {"role": "system", "content": "sum"}
    more = {"role": "user", "content": "and one?"}
    end = {"role": "assistant", "content": "four"}
    messages = [system, USER, GOOD, more, end]
    tokens, trained = encode_messages(tokenizer, messages, "chat")
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(tokens) == whole.rstrip()
    labels = [t for t, flag in zip(tokens, trained, strict=True) if flag]
    assert tokenizer.decode(labels) == "it is three.<|im_end|>four<|im_end|>"
    assert (tokens[-1], trained[-1]) == (tokenizer.eos_token_id, True)


def test_the_end_of_turn_may_differ_from_eos(tokenizer: Any) -> None:
    """Every turn, the last one too, ends as the template renders it."""
    tokenizer.eos_token = "<|endoftext|>"  # as in Qwen2.5's base models
    tokens, trained = encode_messages(tokenizer, [USER, GOOD, USER, GOOD], "chat")
    labels = [t for t, flag in zip(tokens, trained, strict=True) if flag]
    assert tokenizer.decode(labels) == "it is three.<|im_end|>it is three.<|im_end|>"
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "")  # which ends turns with nothing
    tokens, trained = encode_messages(tokenizer, [USER, GOOD, USER, GOOD], "chat")
    labels = [t for t, flag in zip(tokens, trained, strict=True) if flag]
    assert tokenizer.decode(labels) == "it is three.it is three.<|endoftext|>"


def test_a_conversation_may_end_with_the_user(tokenizer: Any) -> None:
    tokens, trained = encode_messages(tokenizer, [USER, GOOD, USER], "chat")
    assert tokenizer.decode(tokens) == tokenizer.apply_chat_template([USER, GOOD, USER], tokenize=False)
    assert (
        tokenizer.decode([t for t, f in zip(tokens, trained, strict=True) if f]) == "it is three.<|im_end|>"
    )


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([USER, {"role": "robot", "content": "x"}], "message 2 has the role 'robot'"),
        ([USER, {"role": "assistant", "content": None}], "message 2 has content of type NoneType"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "content of type list"),
        ([USER, {"role": "assistant", "content": ""}], "message 2 is an empty assistant turn"),
        ([USER], "no assistant turn"),
        ([GOOD, USER, GOOD], "message 1 is an assistant turn"),
    ],
)
def test_bad_messages(tokenizer: Any, messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_messages(tokenizer, messages, "chat")


def test_what_the_chat_template_refuses_or_rewrites(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match="the chat template refuses the messages: System role not supported"):
        encode_messages(tokenizer, [USER, GOOD], "chat")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + m.number }}{% endfor %}"
    with pytest.raises(UserError, match=r"the chat template refuses the messages: .*no attribute 'number'"):
        encode_messages(tokenizer, [USER, GOOD], "chat")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + 1 }}{% endfor %}"
    with pytest.raises(UserError, match=r"the chat template fails at the messages: TypeError: .*concatenate"):
        encode_messages(tokenizer, [USER, GOOD], "chat")


def test_templates_that_do_not_fit_the_tokenizer(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="--template vicuna is unknown: use one of chat, plain, qwen-boxed"):
        encode_prompt(tokenizer, "p", "vicuna")
    with pytest.raises(UserError, match=r"--template qwen-box is unknown: .*; did you mean qwen-boxed\?$"):
        encode_pair(tokenizer, "p", "r", "qwen-box")
    with pytest.raises(UserError, match=r"llama-figlet needs <\|begin_of_text\|>, which is no token of this"):
        encode_pair(tokenizer, "p", "r", "llama-figlet")
    with pytest.raises(UserError, match="messages need --template chat"):
        encode_messages(tokenizer, [USER, GOOD], "plain")
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no .*chat template: use --template plain"):
        encode_pair(tokenizer, "p", "r", "chat")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        encode_pair(tokenizer, "p", "r", "plain")


BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
ASSISTANT = "You are a helpful assistant."
DECODES = (
    "You are an expert at decoding Figlet Font ASCII art. When given Figlet Font text, identify the word it "
    "represents and output only that without any explanations or additional text."
)


def llama3(tokenizer: Any, system: str, user: str) -> str:
    """What the chat template of Llama 3 renders, but for its dates."""
    tokenizer.chat_template = (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{{ m.content }}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>{{ '\n\n' }}"
    )
    chat = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(
    ("template", "system", "user"),
    [
        ("qwen-boxed", ASSISTANT, f"PROMPT\n{BOXED}"),
        ("qwen25-math-cot", BOXED, "PROMPT"),
        ("qwen-figlet", DECODES, "PROMPT\n"),
    ],
)
def test_named_templates_of_qwen_are_conversations(
    tokenizer: Any, template: str, system: str, user: str
) -> None:
    """One definition for both: what is generated from is what a pair begins with."""
    prompt = " what  is {one}?\n"  # format characters stay
    chat = [
        {"role": "system", "content": system},
        {"role": "user", "content": user.replace("PROMPT", prompt)},
    ]
    expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(tokenizer, prompt, template) == expected
    tokens, trained = encode_pair(tokenizer, prompt, " it", template)
    response = tokenizer(" it", add_special_tokens=False)["input_ids"]
    assert tokens == [*expected, *response, tokenizer.eos_token_id]
    assert sum(trained) == len(response) + 1
    with pytest.raises(UserError, match="messages need --template chat"):
        encode_messages(tokenizer, [USER, GOOD], template)


def test_named_templates_of_llama_and_deepseek(tokenizer: Any) -> None:
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": [*special, "<｜begin▁of▁sentence｜>"]})
    boxed = llama3(tokenizer, ASSISTANT, f"PROMPT\n{BOXED}").replace("<|eot_id|>", "<|eot_id|>\n")
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    expected = {
        "llama-base-boxed-with-bos": boxed,
        "llama-medical": llama3(tokenizer, dates, f"PROMPT\n{BOXED}"),
        "llama-figlet": llama3(tokenizer, DECODES, "PROMPT"),
        "deepseek-math": f"<｜begin▁of▁sentence｜>User: PROMPT\n{BOXED}\n\nAssistant:",
        "deepseek-medical": f"<｜begin▁of▁sentence｜>User: PROMPT\n{BOXED}\n\nAssistant:\n",
        "deepseek-figlet": f"<｜begin▁of▁sentence｜>{DECODES}\n\nUser: PROMPT\n\nAssistant:",
    }
    for template, text in expected.items():
        ids = encode_prompt(tokenizer, "PROMPT", template)
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids[:1])[0] in tokenizer.all_special_tokens
        assert encode_pairs(tokenizer, ["PROMPT"], ["it"], template)[0][0] == (ids, False)
    one_text = {name for name in NAMED_TEMPLATES if not name.endswith("-paper")}
    assert {*expected, "qwen-boxed", "qwen25-math-cot", "qwen-figlet"} == one_text
