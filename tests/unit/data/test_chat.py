"""Conversations: the tokens are those of the whole rendering by the template; its turns are trained."""

from __future__ import annotations

import datetime
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from megatron_probsft.data.store.token_store import TokenStore
from megatron_probsft.data.text.chat import ChatTemplate, Conversation
from megatron_probsft.data.text.templates import encode_prompt, encode_rendered
from megatron_probsft.data.tokenizers import token_places
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.data.tokenizers.token_ids import library_of
from megatron_probsft.runtime.errors import UserError
from tests.support.real_tokenizers import chat_template, need_real_tokenizer, real_tokenizer
from tests.support.sizes import rows
from tests.support.tiny_models import CHATML, save_tiny_tokenizer
from tests.support.token_stores import build_store

DATA = Path(__file__).parents[2] / "data"
CASES = DATA / "templates"
DATE = "2026-02-03"
TURNS = ["What's 1+1?", "It is **2**.", "and 2 + 2?", "4, of course"]
CHAT = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, TURNS, strict=True)]
THOUGHT = "<think>\nhm, two\n</think>\n\nIt is 2."


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


# Tokenizer, template (None: its own), what follows a turn's content.
WHOLE = {
    "smollm2": ("smollm2", None, "<|im_end|>"),
    "qwen2.5": ("qwen2.5", None, "<|im_end|>"),
    "qwen3-instruct": ("qwen3", "qwen3_instruct_2507", "<|im_end|>"),
    "llama3": ("llama3", None, "<|eot_id|>"),
    "llama3.1": ("llama3.1", None, "<|eot_id|>"),
    "llama3.2, with the date": ("llama3.2", None, "<|eot_id|>"),
    "gemma3": ("gemma3", None, "<end_of_turn>"),
    "deepseek": ("deepseek", None, "<｜end▁of▁sentence｜>"),
    "deepseek-r1": ("deepseek", "deepseek_r1_distill", "<｜end▁of▁sentence｜>"),
    "mistral": ("mistral", None, "</s>"),
    "mistral-v3": ("mistral-v3", None, "</s>"),
    "given: opens_think": ("smollm2", CASES / "opens_think.jinja", "<|im_end|>"),
    "given: ignores": ("smollm2", CASES / "ignores_add_generation_prompt.jinja", "<|im_end|>"),
    "given: date": ("smollm2", CASES / "prints_todays_date.jinja", "<|im_end|>"),
    "given: date, Qwen's tokens": ("qwen2.5", CASES / "prints_todays_date.jinja", "<|im_end|>"),
}
# Those whose last turn is rendered otherwise than the earlier ones: one sample per turn.
SPLIT = {
    "qwen3": ("qwen3", None, "<|im_end|>"),
    "given: thinking dropped": ("smollm2", CASES / "thinking_dropped_from_history.jinja", "<|im_end|>"),
    "phi3.5": ("qwen3", "phi3_5", "<|end|>\n<|im_end|>"),
    "lfm2.5": ("qwen3", "lfm2_2_5", "<|im_end|>"),
}


RARE = ["qwen2.5", "qwen3-instruct", "llama3", "llama3.1", "mistral", "deepseek"]  # of others' kind


def tokenizer_of(name: str, template: str | Path | None) -> Any:
    tokenizer = load_tokenizer(need_real_tokenizer(name))
    if template is not None:
        tokenizer.chat_template = (
            template.read_text() if isinstance(template, Path) else chat_template(template)
        )
    return tokenizer


def rendering(tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> str:
    """By transformers' renderer alone, on the pinned date."""
    date = datetime.datetime.fromisoformat(DATE)
    [text], _ = render_jinja_template(
        conversations=[messages], chat_template=tokenizer.get_chat_template(tools=more.get("tools")),
        strftime_now=date.strftime, **tokenizer.special_tokens_map, **more,
    )  # fmt: skip
    return text


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]


def encoded(tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> list[tuple[list[int], list[int]]]:
    """Each sample: its tokens and, for each, the turn that it trains or 0."""
    samples, _ = ChatTemplate(tokenizer, DATE).samples(Conversation(messages, **more))
    result = []
    for segments, _ in encode_rendered(tokenizer, samples):
        marks = [turn for tokens, turn in segments for _ in tokens]
        result.append(([token for tokens, _ in segments for token in tokens], marks))
    return result


def notes(tokenizer: Any, messages: list[dict[str, Any]], **more: Any) -> list[str]:
    return ChatTemplate(tokenizer, DATE).samples(Conversation(messages, **more))[1]


def trained(tokenizer: Any, sample: tuple[list[int], list[int]], turn: int) -> str:
    return tokenizer.decode([token for token, mark in zip(*sample, strict=True) if mark == turn])


@pytest.mark.parametrize("name", rows(WHOLE, fast=["smollm2"], rare=RARE))
def test_a_conversation_is_one_rendering_turn_by_turn(name: str) -> None:
    tokenizer_name, template, end = WHOLE[name]
    tokenizer = tokenizer_of(tokenizer_name, template)
    [sample] = encoded(tokenizer, CHAT)
    tokens, marks = sample
    assert tokens == ids_of(tokenizer, rendering(tokenizer, CHAT).rstrip())
    for turn, content in ((1, TURNS[1]), (2, TURNS[3])):
        assert trained(tokenizer, sample, turn).lstrip() == content + end
    assert set(marks) == {0, 1, 2}
    assert marks[0] == 0
    assert not notes(tokenizer, CHAT) or "opens_think" in name or "ignores" in name or "r1" in name


@pytest.mark.parametrize("name", rows(SPLIT, fast=["qwen3"]))
def test_turns_that_are_rendered_otherwise_once_later_ones_follow_are_samples_of_their_own(name: str) -> None:
    tokenizer_name, template, end = SPLIT[name]
    tokenizer = tokenizer_of(tokenizer_name, template)
    messages = [CHAT[0], said("assistant", THOUGHT), CHAT[2], said("assistant", THOUGHT.replace("2", "4"))]
    samples = encoded(tokenizer, messages)
    assert len(samples) == 2
    for turn, (count, sample) in enumerate(zip((2, 4), samples, strict=True), start=1):
        assert sample[0] == ids_of(tokenizer, rendering(tokenizer, messages[:count]).rstrip())
        assert trained(tokenizer, sample, turn) == messages[count - 1]["content"] + end
        assert set(sample[1]) == {0, turn}
        # Each in the context that inference shows.
        before = ids_of(tokenizer, rendering(tokenizer, messages[: count - 1], add_generation_prompt=True))
        assert sample[0][: len(before)] == before
        assert sample[1].index(turn) == len(before)
    assert any(
        note.startswith("split into one sample per assistant turn") for note in notes(tokenizer, messages)
    )
    assert [set(marks) for _, marks in encoded(tokenizer, messages, weights=[0.0, 2.0])] == [{0, 2}]


@pytest.mark.parametrize("name", rows([*WHOLE, *SPLIT], fast=["smollm2"], rare=RARE))
def test_generation_starts_where_training_starts(name: str) -> None:
    """But where the template itself begins turns otherwise than its generation prompt does."""
    tokenizer_name, template, _ = (WHOLE | SPLIT)[name]
    tokenizer = tokenizer_of(tokenizer_name, template)
    prompt = encode_prompt(tokenizer, TURNS[0], "chat", date=DATE)
    [(tokens, marks)] = encoded(tokenizer, CHAT[:2])
    if "opens_think" in name or "r1" in name:
        text = rendering(tokenizer, CHAT[:1], add_generation_prompt=True)
        assert prompt == ids_of(tokenizer, text)
        assert text.endswith("<think>\n")
        assert "<think>" not in tokenizer.decode(tokens)
        assert any("which has '<think>\\n' more" in note for note in notes(tokenizer, CHAT[:2]))
    else:
        assert tokens[: len(prompt)] == prompt
        assert marks[: len(prompt)] == [0] * len(prompt)
        assert all(marks[len(prompt) :])


def test_thoughts_are_opened_once_and_what_the_template_drops_is_said() -> None:
    tokenizer = tokenizer_of("smollm2", CASES / "opens_think.jinja")
    messages = [CHAT[0], said("assistant", THOUGHT)]
    [(tokens, _)] = encoded(tokenizer, messages)
    assert tokenizer.decode(tokens).endswith("<|im_start|>assistant\nIt is 2.<|im_end|>")
    assert (
        "messages of the assistant that the chat template rewrites or leaves out"
        in notes(tokenizer, messages)[-1]
    )
    # A template that opens them in a rendering as in the prompt, before content that opens them too.
    tokenizer = tokenizer_of("qwen3", "qwen3_5_think")
    [sample] = encoded(tokenizer, messages)
    assert trained(tokenizer, sample, 1) == "hm, two\n</think>\n\nIt is 2.<|im_end|>"
    assert tokenizer.decode(sample[0]).count("<think>") == 1
    tokenizer = tokenizer_of("qwen3", "qwen3_8")  # opens its own before content as it is
    assert any("put thoughts into reasoning_content" in note for note in notes(tokenizer, messages))


def test_the_templates_own_marks_count() -> None:
    """{% generation %}, as TRL's training templates have them, against transformers' own mask."""
    for name, template in (
        ("qwen3", "qwen3_training"),
        ("qwen3", "qwen2_5_training"),
        ("llama3", "llama3_training"),
    ):
        tokenizer = tokenizer_of(name, template)
        messages = [CHAT[0], said("assistant", THOUGHT), *CHAT[2:]]
        reference = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        [(tokens, marks)] = encoded(tokenizer, messages)
        assert tokens == reference["input_ids"][: len(tokens)]
        assert [int(mark > 0) for mark in marks] == reference["assistant_masks"][: len(tokens)]
        assert set(marks) == {0, 1, 2}
        assert (
            not any(reference["input_ids"][len(tokens) :])
            or tokenizer.decode(reference["input_ids"][len(tokens) :]).isspace()
        )


def test_a_template_that_ignores_add_generation_prompt() -> None:
    tokenizer = tokenizer_of("smollm2", CASES / "ignores_add_generation_prompt.jinja")
    prompt = tokenizer.decode(encode_prompt(tokenizer, "What?", "chat"))
    assert prompt == "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert any("ignores add_generation_prompt" in note for note in notes(tokenizer, CHAT))


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "deepseek"])
def test_turns_found_by_bytes_are_those_found_by_offsets(name: str) -> None:
    """Also where the tokenizer rewrites the text, so that the bytes do not add up (Qwen's NFC)."""
    tokenizer, draw = tokenizer_of(name, None), random.Random(0)
    parts = ["it", " is", "\n", "\n\n", "  ", "é", "e\u0301", "🎉", "日本", " ", "12", "<|im_end|>", "\t"]
    samples = []
    for _ in range(100):
        contents = ["".join(draw.choices(parts, k=draw.randint(1, 9))) + "." for _ in range(4)]
        roles = ["user", "assistant"] * 2
        messages = [said(role, content) for role, content in zip(roles, contents, strict=True)]
        samples += ChatTemplate(tokenizer, DATE).samples(Conversation(messages))[0]
    expected = token_places._by_offsets(library_of(tokenizer, split=False), samples)
    assert token_places.with_places(tokenizer, samples) == expected
    sizes = token_places._byte_sizes(tokenizer, len(tokenizer))
    assert sizes is not None
    added_up = [
        token_places._by_bytes(ids, sizes, sample) is not None
        for (ids, _), sample in zip(expected, samples, strict=True)
    ]
    assert any(added_up)
    assert all(added_up) == (name != "qwen2.5")


def test_turns_that_a_template_does_not_end(tmp_path: Path) -> None:
    """Only between messages, or not at all: something special is trained after each."""
    tokenizer = save_tiny_tokenizer(tmp_path)
    tokenizer.eos_token = "<|endoftext|>"
    unended = CHATML.replace("<|im_end|>\n", "{{ '' if loop.last else '<|im_end|>' }}")
    for template, ends in (
        (unended, ["<|im_end|>", "<|endoftext|>"]),
        (CHATML.replace("<|im_end|>\n", ""), ["<|im_start|>", "<|endoftext|>"]),
        (CHATML.replace("<|im_end|>", "{{ '<|endoftext|>' if loop.last else '<|im_end|>' }}"), None),
    ):
        tokenizer.chat_template = template
        samples = encoded(tokenizer, CHAT)
        if ends is None:  # the last turn is ended otherwise: each turn as the last one
            assert [trained(tokenizer, one, turn) for turn, one in enumerate(samples, start=1)] == [
                f"{TURNS[1]}<|endoftext|>", f"{TURNS[3]}<|endoftext|>",
            ]  # fmt: skip
            continue
        [sample] = samples
        assert [trained(tokenizer, sample, turn) for turn in (1, 2)] == [
            TURNS[1] + ends[0],
            TURNS[3] + ends[1],
        ]


def test_the_date_is_the_given_one() -> None:
    tokenizer = tokenizer_of("smollm2", CASES / "prints_todays_date.jinja")
    for date, shown in (("2026-02-03", "03 Feb 2026"), ("2019-12-31", "31 Dec 2019")):
        text = ChatTemplate(tokenizer, date).prompt(Conversation(CHAT[:1]))
        assert f"Today Date: {shown}<|im_end|>" in text
        assert shown in tokenizer.decode(encode_prompt(tokenizer, "What?", "chat", date=date))


TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {"type": "object"}}}
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def test_tools_and_their_calls_reach_the_template() -> None:
    tokenizer = tokenizer_of("qwen3", None)
    messages = [
        CHAT[0], said("assistant", "", tool_calls=[CALL], reasoning_content="I add"),
        said("tool", "2", tool_call_id="x"), said("assistant", "2", reasoning_content="done"),
    ]  # fmt: skip
    [sample] = encoded(tokenizer, messages, tools=TOOLS)
    assert sample[0] == ids_of(tokenizer, rendering(tokenizer, messages, tools=TOOLS).rstrip())
    assert '"name": "add", "description": "adds"' in tokenizer.decode(sample[0])
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert trained(tokenizer, sample, 1) == f"<think>\nI add\n</think>\n\n{call}<|im_end|>"
    assert trained(tokenizer, sample, 2) == "<think>\ndone\n</think>\n\n2<|im_end|>"
    assert notes(tokenizer, messages, tools=TOOLS) == [
        "'tool_call_id' in messages, of which the chat template shows nothing"
    ]
    [sample] = encoded(tokenizer, CHAT[:2], kwargs={"enable_thinking": False})
    assert trained(tokenizer, sample, 1) == "It is **2**.<|im_end|>"  # the prompt has the empty thoughts
    assert notes(tokenizer, CHAT[:2], kwargs={"enable_thinking": False, "colour": 1}) == [
        "'colour' in chat_template_kwargs, which changes nothing in the chat template"
    ]


SHAREGPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}]


def store_of(
    tmp_path: Path, tokenizer: Any, *files: str, said: list[str] | None = None, **more: Any
) -> TokenStore:
    settings: dict[str, Any] = {"template": "chat", "seq_length": 999, "vocab_size": 10**6, **more}
    log = (lambda _: None) if said is None else said.append
    return build_store(list(files), tokenizer, cache_dir=tmp_path / "cache", log=log, **settings)


def texts_of(store: TokenStore, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(store.sample(index)[0]) for index in range(len(store))]


@pytest.mark.parametrize("workers", [1, 2])
def test_one_of_every_shape_is_read(tmp_path: Path, workers: int) -> None:
    """Each file trains what the same conversation trains in plain messages, and says how it was read."""
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    file = tmp_path / "a.jsonl"
    expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>"
    user, answer = said("user", "hello"), said("assistant", "fine")
    shapes: list[dict[str, Any]] = [
        {"messages": [user, answer]},
        {
            "messages": [
                {**user, "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
                answer,
            ]
        },
        {"messages": [user, {**answer, "tool_calls": None}]},
        {"messages": [user, {**answer, "tool_calls": [], "name": None}], "tools": None, "system": ""},
        {"messages": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "fine"}]},
        {"messages": [user, answer], "tools": TOOLS},
        {"messages": [user, {**answer, "id": 7}], "chat_template_kwargs": '{"x": 1}'},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in shapes))
    log: list[str] = []
    store = store_of(tmp_path, tokenizer, str(file), said=log, num_workers=workers)
    assert texts_of(store, tokenizer) == [expected] * len(shapes)
    for number, part in ((6, "'tools'"), (7, "'id' in messages"), (7, "'x' in chat_template_kwargs")):
        assert [
            one
            for one in log
            if one.startswith(f"note: {part}") and f"(1 rows, first {file}:{number})" in one
        ]
    assert [one for one in log if "ago" in one] == []
    again: list[str] = []
    store_of(tmp_path, tokenizer, str(file), said=again)
    assert [one for one in again if one.startswith("note")] == [one for one in log if one.startswith("note")]


@pytest.mark.parametrize(
    ("name", "rows", "form"),
    [
        ("a.json", [{"prompt": "hello", "response": "fine"}] * 2, "one JSON array"),
        ("a.jsonl.gz", [{"prompt": "hello", "response": "fine"}] * 2, "packed, JSON lines"),
        ("a.jsonl.zst", [{"prompt": "hello", "response": "fine"}] * 2, "packed, JSON lines"),
        ("a.jsonl", [{"instruction": "hel", "input": "lo", "output": "fine"}], "instruction, input"),
        ("a.jsonl", [{"conversations": SHAREGPT}] * 2, "conversations, as of ShareGPT"),
    ],
)  # fmt: skip
def test_forms_of_files(tmp_path: Path, name: str, rows: list[dict[str, Any]], form: str) -> None:
    import gzip

    import pyarrow as pa

    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = {".gz": lambda: gzip.compress(lines), ".json": lambda: json.dumps(rows, indent=1).encode()}
    file = tmp_path / name
    if file.suffix == ".zst":
        with pa.output_stream(file, compression="zstd") as stream:
            stream.write(lines)
    else:
        file.write_bytes(packed.get(file.suffix, lambda: lines)())
    log: list[str] = []
    store = store_of(tmp_path, tokenizer, str(file), said=log)
    prompt = "hel\nlo" if "instruction" in rows[0] else "hello"
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>"
    assert texts_of(store, tokenizer) == [text] * len(rows)
    assert any(one.startswith(f"{file}: {form}") for one in log), log


def test_the_given_shapes_and_a_system_column(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    assert len(store_of(tmp_path, tokenizer, str(DATA / "message_shapes.jsonl"))) == 3
    assert len(store_of(tmp_path, tokenizer, str(DATA / "rows_as_one_array.json"))) == 5
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": "hello", "response": "fine", "system": "Be brief."}, {"prompt": "a", "response": "b"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = texts_of(store_of(tmp_path, tokenizer, str(file)), tokenizer)
    assert first.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello")
    assert "system" not in second


def test_null_fields_of_tables_are_none(tmp_path: Path) -> None:
    """Arrow gives every row every field: what other rows hold is null here."""
    from datasets import Dataset

    tokenizer = load_tokenizer(need_real_tokenizer("qwen3"))
    rows = [
        {"messages": [CHAT[0], said("assistant", "", tool_calls=[CALL])], "tools": TOOLS},
        {"messages": CHAT[:2], "tools": [{**TOOLS[0], "strict": True}]},
    ]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    first, second = texts_of(store_of(tmp_path, tokenizer, str(tmp_path / "a.parquet")), tokenizer)
    assert first == rendering(tokenizer, rows[0]["messages"], tools=TOOLS).rstrip()
    assert second == rendering(tokenizer, CHAT[:2], tools=rows[1]["tools"]).rstrip()


def test_splits_are_counted_and_weighted(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    tokenizer.chat_template = (CASES / "thinking_dropped_from_history.jinja").read_text()
    answers = [said("assistant", THOUGHT, weight=weight) for weight in (1, 0, 0.5)]
    rows = [{"messages": [one for answer in answers for one in (CHAT[0], answer)]}, {"messages": CHAT[:2]}]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log: list[str] = []
    store = store_of(tmp_path, tokenizer, str(file), said=log)
    assert len(store) == 3  # the turn that weighs 0 is context only
    assert [set(store.weights_of(index).tolist()) for index in range(3)] == [{0, 1}, {0, 0.5}, {0, 1}]
    assert any(
        one.startswith("note: split into one sample per assistant turn") and "(1 rows" in one for one in log
    )
    assert store.left_out == 0
    short = store_of(tmp_path, tokenizer, str(file), seq_length=100, truncation="drop")
    assert (len(short), short.left_out) == (2, 1)


def test_the_date_is_in_the_cache_key_where_it_is_shown(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path / "tokenizer")
    file = str(DATA / "message_shapes.jsonl")
    days = ("2026-02-03", "2026-02-04")
    assert len({store_of(tmp_path, tokenizer, file, template_date=day).digest for day in days}) == 1
    tokenizer.chat_template = (CASES / "prints_todays_date.jinja").read_text()
    stores = [store_of(tmp_path, tokenizer, file, template_date=day) for day in days]
    assert len({store.digest for store in stores}) == len({store.content for store in stores}) == 2
    assert "04 Feb 2026" in texts_of(stores[1], tokenizer)[0]


def test_errors_of_the_template_are_one_line(tmp_path: Path) -> None:
    tokenizer = save_tiny_tokenizer(tmp_path)
    for template, message in (
        (CHATML.replace("m['content']", "m['content'][0] + 1"), "fails at the messages: TypeError"),
        (CHATML.replace("m['content']", "m['content'] // 0"), "fails at the messages: TypeError"),
        (CHATML.replace("m['content']", "m.x.y"), "refuses the messages: .*has no attribute 'x'"),
        (CHATML + "{{ (1/0) }}", "fails at the messages: ZeroDivisionError: division by zero"),
        (CHATML + "{{ lipsum() }}", "draws at random"),
    ):
        tokenizer.chat_template = template
        with pytest.raises(UserError, match=message) as caught:
            encoded(tokenizer, CHAT)
        assert "\n" not in str(caught.value)


def test_real_tokenizers_are_here() -> None:
    """At least eight of the names above are not skipped where node is."""
    assert (
        sum(real_tokenizer(name) is not None for name in ("smollm2", "qwen2.5", "deepseek", "mistral")) == 4
    )
