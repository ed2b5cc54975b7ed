"""Tokenizers: a bare tokenizer.model gives sentencepiece's own ids, whatever the text."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import dill
import pyfiglet
import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import AutoTokenizer

from megatron_probsft.checkpoint.hf.safetensors_folder import copy_side_files
from megatron_probsft.data.text.templates import encode_messages, encode_pair, encode_prompt
from megatron_probsft.data.tokenizers.load import load_tokenizer, tokenizer_identity
from megatron_probsft.data.tokenizers.sentencepiece import SentencePieceTokenizer
from megatron_probsft.runtime.errors import UserError
from tests.support.tiny_models import save_tiny_tokenizer
from tests.support.token_stores import build_store

LLAMA_CHAT = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ bos_token }}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
WORDS = ["the", "sum", "of", "one", "two", "is", "three", "café", "12", "345", "(", "+", "/", "\\frac", "it"]
KINDS: dict[str, dict[str, Any]] = {
    "bpe": {},
    "unigram": {"model_type": "unigram"},
    "bpe without dummy prefix": {"add_dummy_prefix": False},
    "normalizing": {"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
    "unigram without bytes": {"model_type": "unigram", "byte_fallback": False},
    "own symbols": {"user_defined_symbols": ["<tab>", "   ", "\n", "</s >"], "control_symbols": ["[INST]"]},
}


def save_sentencepiece(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A small model in a folder, as Llama's was trained: BPE with byte fallback, every space kept."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(600)]
    settings: dict[str, Any] = {
        "vocab_size": 400, "hard_vocab_limit": False, "model_type": "bpe", "byte_fallback": True,
        "remove_extra_whitespaces": False, "normalization_rule_name": "identity", "minloglevel": 2,
    }  # fmt: skip
    model = io.BytesIO()
    lines += ["def f(x):\n    return  x", "a  b    c"] * 20
    SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **(settings | changes))
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def texts() -> list[str]:
    """2,300 texts: figlet, and all that tokenizers get wrong, mixed at random."""
    draw = random.Random(1)
    fonts = ["standard", "slant", "banner", "big", "block", "digital"]
    art = [pyfiglet.figlet_format(" ".join(draw.choices(WORDS, k=2)), font=f) for f in fonts * 50]
    parts = [
        *"a1_/\\|▁éＡﬁ🎉", "the",
        " ", "  ", "     ", "\n", "\t", "\r\n", "日本", "\u00a0", "\u200b", "e\u0301",
        "\0", "<s>", "</s>", "<unk>", "<0x0A>", "<|im_end|>", "<tab>", "[INST]", "</s >",
    ]  # fmt: skip
    mixed = ["".join(draw.choices(parts, k=draw.randint(1, 12))) for _ in range(1990)]
    return [*art, *mixed, "", " ", "\n", " a", "a ", "  a  ", "\na\n", "▁", "▁a", "a" * 5000]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_are_sentencepieces(tmp_path: Path, kind: str) -> None:
    folder = save_sentencepiece(tmp_path / "model", **KINDS[kind])
    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    tokenizer = load_tokenizer(folder)
    all_texts = texts()
    expected = [reference.encode(text) for text in all_texts]
    assert tokenizer(all_texts, add_special_tokens=False, verbose=False)["input_ids"] == expected
    assert [tokenizer.decode(ids) for ids in expected] == [reference.decode(ids) for ids in expected]
    assert tokenizer(all_texts[0])["input_ids"] == [reference.bos_id(), *expected[0]]
    assert (tokenizer.eos_token_id, tokenizer.eos_token) == (reference.eos_id(), "</s>")
    # The reason for all this: what transformers makes of the same file.
    converted = AutoTokenizer.from_pretrained(folder)
    assert converted(all_texts, add_special_tokens=False, verbose=False)["input_ids"] != expected


def test_a_copy_in_a_worker_process_is_the_same(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(save_sentencepiece(tmp_path / "model", {"legacy": False}))
    copy = dill.loads(dill.dumps(tokenizer))
    text = "<s>  one</s> two\n"
    for split in (True, False):
        assert copy(text, split_special_tokens=split) == tokenizer(text, split_special_tokens=split)
    assert tokenizer_identity(copy) == tokenizer_identity(tokenizer)


@pytest.mark.parametrize(
    ("config", "start", "end"),
    [
        ({}, [1], []),
        ({"add_bos_token": False, "add_eos_token": True}, [], [2]),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"add_bos_token": False}, [], []),
    ],
)
def test_bos_and_eos_are_as_the_folder_says(
    tmp_path: Path, config: dict[str, Any], start: list[int], end: list[int]
) -> None:
    tokenizer = load_tokenizer(save_sentencepiece(tmp_path / "model", config))
    bare = tokenizer.sp_model.encode("one two")
    result = tokenizer("one two", return_special_tokens_mask=True)
    assert result["input_ids"] == [*start, *bare, *end]
    assert result["special_tokens_mask"] == [1] * len(start) + [0] * len(bare) + [1] * len(end)
    assert encode_prompt(tokenizer, "one two", "plain") == [*start, *bare]


def test_special_tokens_are_tokens_in_what_a_template_renders_only(tmp_path: Path) -> None:
    """A rendering's are those that transformers finds in it; a response encoded by itself is text."""
    folder = save_sentencepiece(tmp_path / "model", {"chat_template": LLAMA_CHAT})
    tokenizer = load_tokenizer(folder)
    encode = tokenizer.sp_model.encode
    prompt = encode_prompt(tokenizer, "what is  one", "chat")
    assert prompt == [1, *encode("[INST] what is  one [/INST]")]
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "what is  one"}], return_dict=False)
    assert rendered == prompt
    tokens, trained = encode_pair(tokenizer, "what is  one", "</s>  it", "chat")
    roles = {"user": "what is  one", "assistant": "</s>  it"}
    chat = [{"role": role, "content": content} for role, content in roles.items()]
    assert tokens == tokenizer.apply_chat_template(chat, return_dict=False)
    assert tokens == [1, *encode("[INST] what is  one [/INST] "), 2, *encode("  it "), 2]
    assert sum(trained) == len(tokens) - len(prompt) - 1  # but for the space before </s>, of the template
    tokens, trained = encode_pair(tokenizer, "what is  one", "</s>  it", "plain")
    assert tokens == [1, *encode("what is  one"), *encode("</s>  it"), 2]
    assert sum(trained) == len(encode("</s>  it")) + 1
    assert tokenizer.decode(tokens[-sum(trained) : -1]) == "</s>  it"


@pytest.mark.parametrize("legacy", [True, False])
def test_the_parts_of_a_conversation_are_those_of_its_whole(tmp_path: Path, legacy: bool) -> None:
    folder = save_sentencepiece(tmp_path / "model", {"chat_template": LLAMA_CHAT, "legacy": legacy})
    tokenizer = load_tokenizer(folder)
    roles = ["user", "assistant"] * 2
    contents = ["what is one", "it is three", "and two", "it  is"]
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    tokens, trained = encode_messages(tokenizer, messages, "chat")
    assert tokens == tokenizer.apply_chat_template(messages, return_dict=False)
    assert [t for t, flag in zip(tokens, trained, strict=True) if flag] == [
        *tokenizer("it is three </s>", split_special_tokens=False, add_special_tokens=False)["input_ids"],
        *tokenizer("it  is </s>", split_special_tokens=False, add_special_tokens=False)["input_ids"],
    ]


@pytest.mark.parametrize(("legacy", "after"), [(True, ["▁two"]), (False, ["t", "wo"])])
def test_the_dummy_prefix_after_a_special_token(tmp_path: Path, legacy: bool, after: list[str]) -> None:
    tokenizer = load_tokenizer(save_sentencepiece(tmp_path / "model", {"legacy": legacy}))
    assert tokenizer.tokenize("one</s>two", split_special_tokens=False) == ["▁one", "</s>", *after]
    ids = tokenizer("one</s>two", split_special_tokens=False, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "one</s>two"
    assert tokenizer.decode(ids, skip_special_tokens=True) == ("one two" if legacy else "onetwo")


def test_added_tokens(tmp_path: Path) -> None:
    """Special ones are found in renderings, the others in every text; both behind the model's own ids."""
    folder = save_sentencepiece(tmp_path / "model", {"eos_token": "<|im_end|>"})
    size = len(load_tokenizer(folder).sp_model)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size, "xyzzy": size + 1}))
    tokenizer = load_tokenizer(folder)
    encode = tokenizer.sp_model.encode
    assert tokenizer.eos_token_id == size
    ids = tokenizer("one<|im_end|>xyzzy", add_special_tokens=False)["input_ids"]
    assert ids == [*encode("one<|im_end|>"), size + 1]
    ids = tokenizer("one<|im_end|>xyzzy", add_special_tokens=False, split_special_tokens=False)["input_ids"]
    assert ids == [*encode("one"), size, size + 1]
    assert tokenizer.decode([*ids, size + 7]) == "one<|im_end|>xyzzy"  # size + 7: a padded row of the model


def test_a_store_from_sentencepiece_and_its_digest(tmp_path: Path) -> None:
    rows = [{"prompt": f"what is {i}?\n", "response": f"  it\n\tis {i}  "} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(**changes: Any) -> Any:
        tokenizer = load_tokenizer(save_sentencepiece(tmp_path / "model", **changes))
        store = build_store(
            [str(tmp_path / "a.jsonl")], tokenizer, template="plain", seq_length=512,
            vocab_size=len(tokenizer), cache_dir=tmp_path / "cache", num_workers=2, log=lambda _: None,
        )  # fmt: skip
        return tokenizer, store

    tokenizer, store = build()
    encode = tokenizer.sp_model.encode
    assert [store.sample(i)[0].tolist() for i in range(5)] == [
        [1, *encode(row["prompt"]), *encode(row["response"]), 2] for row in rows
    ]
    changes = ({}, {"add_dummy_prefix": False}, {"config": {"add_bos_token": False}}, {"config": {}})
    digests = [build(**change)[1].digest for change in changes]
    assert [digest == store.digest for digest in digests] == [True, False, False, True]


def test_tokenizer_json_and_the_files_of_byte_level_bpe_are_transformers(tmp_path: Path) -> None:
    saved = save_tiny_tokenizer(tmp_path / "json")
    save_sentencepiece(tmp_path / "json")  # tokenizer.json goes first, as for every other program
    tokenizer = load_tokenizer(tmp_path / "json")
    assert not isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer("what\n\n is  it").input_ids == saved("what\n\n is  it").input_ids
    model = json.loads(saved.backend_tokenizer.to_str())["model"]
    (tmp_path / "files").mkdir()
    (tmp_path / "files/vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "files/merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (tmp_path / "files/config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert load_tokenizer(tmp_path / "files")("what is").input_ids == saved("what is").input_ids


def test_tokenizer_model_travels_with_checkpoints(tmp_path: Path) -> None:
    folder = save_sentencepiece(tmp_path / "model", {"legacy": True})
    copy_side_files(folder, tmp_path / "copy")
    assert tokenizer_identity(load_tokenizer(tmp_path / "copy")) == tokenizer_identity(load_tokenizer(folder))


def test_folders_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer: it needs tokenizer.json or .*tokenizer.model"):
        load_tokenizer(tmp_path)
    save_sentencepiece(tmp_path)
    whole = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (b"", whole[:500], whole[:-300], b"IQ== 0\nIg== 1\n"):  # the last: tiktoken, as of Llama 3
        (tmp_path / "tokenizer.model").write_bytes(damaged)
        with pytest.raises(UserError, match=r"tokenizer.model is damaged or no SentencePiece model"):
            load_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"of tiktoken's form, .*; tokenizer.json is needed"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match="the tokenizer cannot be loaded: "):
        load_tokenizer(tmp_path)
