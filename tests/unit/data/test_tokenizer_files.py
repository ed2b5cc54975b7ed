"""Token ids are those of the tokenizer's own file, whatever class the folder names."""

from __future__ import annotations

import functools
import json
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import dill
import pytest
import tiktoken
from sentencepiece import SentencePieceProcessor
from tiktoken.load import load_tiktoken_bpe
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from megatron_probsft.data.text.templates import encode_pair, encode_prompt
from megatron_probsft.data.tokenizers import trial
from megatron_probsft.data.tokenizers.load import load_tokenizer, tokenizer_identity
from megatron_probsft.data.tokenizers.notes import tokenizer_notes
from megatron_probsft.runtime.errors import UserError
from tests.support.real_tokenizers import REAL_TOKENIZERS, need_real_tokenizer, qwen2_ranks
from tests.support.sizes import rows
from tests.support.tiny_models import save_tiny_tokenizer

GIVEN = Path(__file__).parents[2] / "data" / "byte_level_llama_tokenizer"
NAMES = ["given", *(name for name in REAL_TOKENIZERS if not name.startswith("llama3."))]  # files of llama3
QUESTION = "What is the sum of 1 and 2?"


def texts(special: list[str]) -> list[str]:
    """500 texts of all that tokenizers get wrong, mixed at random, with special tokens spelled in them."""
    draw = random.Random(2)
    parts = [
        *"a1_/\\|▁é½Ａﬁ🎉,.", "the", "What", "don't", "WE'LL", "1234567", "3.14", "\\frac{1}{2}", "def f(x):",
        " ", " ", "  ", "     ", "\n", "\n\n", "\t", "\r\n", "日本語", "한국", "мир", "\u00a0", "\u200b",
        "e\u0301", "caf\u00e9", "👩\u200d👧", "\0", "<s>", "</s>", "<unk>", "<|im_end|>", *special[:20],
    ]  # fmt: skip
    mixed = ["".join(draw.choices(parts, k=draw.randint(1, 14))) for _ in range(490)]
    return [*mixed, "", " ", "\n", " a", "a ", "  a  ", "\r\na\r\n", "▁", "a" * 500, QUESTION]


def folder_of(name: str) -> Path:
    return GIVEN if name == "given" else need_real_tokenizer(name)


@functools.cache
def loaded(folder: Path) -> Any:
    return load_tokenizer(folder)


def copy(source: Path, target: Path, model_type: str | None = None, **changes: Any) -> Path:
    """The folder with changes of its tokenizer_config.json; None takes a key out."""
    shutil.copytree(source, target)
    config = json.loads((target / "tokenizer_config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if changes.get(key, value) is not None}
    (target / "tokenizer_config.json").write_text(json.dumps(kept))
    if model_type:
        (target / "config.json").write_text(json.dumps({"model_type": model_type}))
    return target


@pytest.mark.parametrize("name", rows(NAMES, fast=["given"], rare=["qwen3", "mistral"]))
def test_ids_and_text_of_real_tokenizers_are_their_files(name: str) -> None:
    folder = folder_of(name)
    tokenizer = loaded(folder)
    if (folder / "tokenizer.json").exists():
        file: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        special = [token.content for token in file.get_added_tokens_decoder().values()]
        probe = texts(special)
        expected = [file.encode(text, add_special_tokens=False).ids for text in probe]
        decoded = [file.decode(ids, skip_special_tokens=False) for ids in expected]
        assert [tokenizer(text)["input_ids"] for text in probe] == [file.encode(text).ids for text in probe]
    else:
        model = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        probe = texts([])
        expected = [model.encode(text) for text in probe]
        decoded = [model.decode(ids) for ids in expected]
        assert [tokenizer(text)["input_ids"] for text in probe] == [
            [model.bos_id(), *ids] for ids in expected
        ]
    assert tokenizer(probe, add_special_tokens=False)["input_ids"] == expected
    assert [tokenizer.decode(ids) for ids in expected] == decoded
    _, trained = encode_pair(tokenizer, QUESTION, QUESTION, "plain")
    assert encode_pair(tokenizer, QUESTION, QUESTION, "plain")[0][-sum(trained) :] == [
        *expected[-1], tokenizer.eos_token_id,
    ]  # fmt: skip


@pytest.mark.parametrize("name", rows(NAMES, fast=["given"], rare=["qwen3", "mistral"]))
def test_all_but_the_ids_is_as_transformers_has_it(name: str) -> None:
    """Names of special tokens, templates and lengths; the fast way of templates.py is taken."""
    folder = folder_of(name)
    ours, theirs = loaded(folder), AutoTokenizer.from_pretrained(folder)
    named = theirs.special_tokens_map
    if name == "gemma3":
        named = {key: token for key, token in named.items() if key != "mask_token"}  # its class's own
    assert ours.special_tokens_map == named
    assert ours.chat_template == theirs.chat_template
    assert (ours.model_max_length, len(ours)) == (theirs.model_max_length, len(theirs))
    assert ours.get_vocab() == theirs.get_vocab()
    if (folder / "tokenizer.json").exists():
        assert type(ours)._encode_plus is TokenizersBackend._encode_plus


CLASSES = [
    "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "Qwen2TokenizerFast", "GPT2Tokenizer",
    "GemmaTokenizerFast", "T5TokenizerFast", "CodeLlamaTokenizer", "NoSuchTokenizer", None,
]  # fmt: skip


@pytest.mark.parametrize("model_type", [None, "llama", "mistral", "qwen2", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("class_name", CLASSES)
def test_no_class_has_a_say(tmp_path: Path, class_name: str | None, model_type: str | None) -> None:
    folder = copy(GIVEN, tmp_path / "model", model_type, tokenizer_class=class_name)
    file: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    probe = texts(["<｜begin▁of▁sentence｜>"])
    assert [tokenizer(text)["input_ids"] for text in probe] == [file.encode(text).ids for text in probe]
    assert tokenizer.decode(tokenizer(QUESTION)["input_ids"], skip_special_tokens=True) == QUESTION


def test_what_transformers_makes_of_the_given_file(tmp_path: Path) -> None:
    """The reason for all this, the line that says so, and that its advice is right."""
    other: Any = AutoTokenizer.from_pretrained(GIVEN)
    assert " " not in other.decode(other(QUESTION)["input_ids"], skip_special_tokens=True)
    [note] = tokenizer_notes(GIVEN, load_tokenizer(GIVEN))
    assert "AutoTokenizer" in note
    assert f"{QUESTION!r} becomes" in note
    assert "'Whatisthesumof1and2?'" in note
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in note
    assert "\n" not in note
    mended = copy(GIVEN, tmp_path / "mended", "llama", tokenizer_class="PreTrainedTokenizerFast")
    assert tokenizer_notes(mended, load_tokenizer(mended)) == []
    assert (
        AutoTokenizer.from_pretrained(mended)(QUESTION).input_ids
        == load_tokenizer(mended)(QUESTION).input_ids
    )


def test_code_of_the_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    auto_map = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    folder = copy(GIVEN, tmp_path / "model", tokenizer_class="OwnTokenizer", auto_map=auto_map)
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnTokenizer: pass\n")
    tokenizer = load_tokenizer(folder)
    assert tokenizer(QUESTION).input_ids == load_tokenizer(GIVEN)(QUESTION).input_ids
    tokenizer_notes(folder, tokenizer)
    (folder / "tokenizer.json").rename(folder / "own.tiktoken")
    with pytest.raises(UserError, match=r"has no tokenizer, only own.tiktoken, .*auto_map. is never run"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_special_tokens_around_a_text_are_the_files(tmp_path: Path) -> None:
    without = copy(GIVEN, tmp_path / "without", add_bos_token=False, add_eos_token=True)
    tokenizer = load_tokenizer(without)
    assert encode_prompt(tokenizer, QUESTION, "plain")[0] == tokenizer.bos_token_id
    notes = tokenizer_notes(without, tokenizer)
    assert "add_bos_token false, but tokenizer.json adds BOS; tokenizer.json decides" in notes[0]
    assert "add_eos_token true, but tokenizer.json adds no EOS; tokenizer.json decides" in notes[1]


def test_tokens_that_only_the_config_knows(tmp_path: Path) -> None:
    """They get the ids that it gives them, or the folder is refused."""
    size = len(load_tokenizer(GIVEN))
    new = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    known = {str(i): {"content": load_tokenizer(GIVEN).convert_ids_to_tokens(i), **new} for i in (0, 1)}
    tokens = known | {str(size): {"content": "<|im_end|>", **new}}
    folder = copy(GIVEN, tmp_path / "right", added_tokens_decoder=tokens, eos_token="<|im_end|>")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_id == size
    assert tokenizer("is<|im_end|>", add_special_tokens=False).input_ids[-1] == size
    for index, content in ((size + 3, "<|im_end|>"), (5, "<｜end▁of▁sentence｜>")):
        wrong = copy(
            GIVEN, tmp_path / f"wrong-{index}",
            added_tokens_decoder=known | {str(index): {"content": content, **new}},
        )  # fmt: skip
        with pytest.raises(UserError, match=rf"is token {index} in tokenizer_config.json, but \d+ in the"):
            load_tokenizer(wrong)


def test_a_silent_config_has_the_models_ends(tmp_path: Path) -> None:
    folder = copy(GIVEN, tmp_path / "model", bos_token=None, eos_token=None, pad_token=None)
    assert load_tokenizer(folder).eos_token_id is None
    (folder / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}))
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token, tokenizer.pad_token) == (
        0,
        "<｜end▁of▁sentence｜>",
        None,
    )


def test_settings_that_would_change_ids_or_lengths(tmp_path: Path) -> None:
    """Truncation and padding in the file, and transformers' own split for Mistral's files."""
    folder = copy(GIVEN, tmp_path / "model")
    file: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.enable_truncation(4)
    file.enable_padding(length=64, pad_id=1)
    file.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder)(QUESTION).input_ids == load_tokenizer(GIVEN)(QUESTION).input_ids
    real = need_real_tokenizer("llama3")
    mistral = copy(real, tmp_path / "mistral", fix_mistral_regex=True)
    (mistral / "config.json").write_text('{"model_type": "mistral", "transformers_version": "4.50.0"}')
    probe = texts([])
    assert load_tokenizer(mistral)(probe).input_ids == loaded(real)(probe).input_ids


def test_without_a_config(tmp_path: Path) -> None:
    """As tools that make a tokenizer.json leave it; the ends are config.json's."""
    shutil.copyfile(GIVEN / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 1}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer(QUESTION).input_ids == load_tokenizer(GIVEN)(QUESTION).input_ids
    assert tokenizer.eos_token == "<｜end▁of▁sentence｜>"
    for content, match in (("[]", "must hold a JSON object, got list"), ('{"a"', "is not valid JSON")):
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(UserError, match=f"tokenizer_config.json {match}"):
            load_tokenizer(tmp_path)


def test_templates_beside_the_config(tmp_path: Path) -> None:
    folder = copy(GIVEN, tmp_path / "model", chat_template="of the config")
    assert load_tokenizer(folder).chat_template == "of the config"
    (folder / "chat_template.jinja").write_text("of the file")
    assert load_tokenizer(folder).chat_template == "of the file"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("another")
    assert load_tokenizer(folder).chat_template == {"default": "of the file", "rag": "another"}


def test_qwens_ids_are_those_of_its_tiktoken_form() -> None:
    ranks = qwen2_ranks()
    folder = need_real_tokenizer("qwen2.5")
    file = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in file["added_tokens"]}
    pattern = file["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    reference = tiktoken.Encoding(
        "qwen", pat_str=pattern, mergeable_ranks=load_tiktoken_bpe(str(ranks)), special_tokens=special
    )
    tokenizer = loaded(folder)
    probe = texts(list(special))
    assert tokenizer(probe).input_ids == [
        reference.encode(unicodedata.normalize("NFC", text), allowed_special="all") for text in probe
    ]


def save_vocab_and_merges(source: Path, target: Path, model_type: str | None, class_name: str | None) -> Path:
    model = json.loads((source / "tokenizer.json").read_text())["model"]
    target.mkdir()
    (target / "vocab.json").write_text(json.dumps(model["vocab"]))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    if model_type:
        (target / "config.json").write_text(json.dumps({"model_type": model_type}))
    if class_name:
        config = json.loads((source / "tokenizer_config.json").read_text()) | {"tokenizer_class": class_name}
        (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def test_qwens_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    whole = need_real_tokenizer("qwen2.5")
    file: Any = Tokenizer.from_file(str(whole / "tokenizer.json"))
    folder = save_vocab_and_merges(whole, tmp_path / "files", "qwen2", "Qwen2Tokenizer")
    tokens = {
        str(index): {"content": token.content, "special": token.special, "normalized": False, "lstrip": False,
                     "rstrip": False, "single_word": False}
        for index, token in file.get_added_tokens_decoder().items()
    }  # fmt: skip
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"added_tokens_decoder": tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    probe = texts([token["content"] for token in tokens.values()])
    tokenizer = load_tokenizer(folder)
    assert tokenizer(probe).input_ids == [file.encode(text).ids for text in probe]
    assert tokenizer.decode(file.encode(QUESTION).ids) == QUESTION


def test_gpt2s_vocab_json_and_merges_txt(tmp_path: Path) -> None:
    save_tiny_tokenizer(tmp_path / "json")
    probe = [text for text in texts([]) if "<|" not in text]
    for number, (model_type, name) in enumerate(
        [("gpt2", None), (None, "GPT2TokenizerFast"), ("gpt2", "GPT2Tokenizer")]
    ):
        folder = save_vocab_and_merges(tmp_path / "json", tmp_path / str(number), model_type, name)
        reference = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        assert load_tokenizer(folder)(probe).input_ids == [reference.encode(text).ids for text in probe]
    for model_type, name in [
        ("llama", None),
        ("llama", "GPT2Tokenizer"),
        ("qwen2", "GPT2Tokenizer"),
        (None, None),
        (None, "LlamaTokenizerFast"),
        ("llama", "LlamaTokenizerFast"),
    ]:
        folder = save_vocab_and_merges(tmp_path / "json", tmp_path / f"{model_type}-{name}", model_type, name)
        with pytest.raises(UserError, match=r"has no tokenizer, only vocab.json, which do not say how"):
            load_tokenizer(folder)
    vocab = json.loads((tmp_path / "0" / "vocab.json").read_text())
    (tmp_path / "0" / "vocab.json").write_text(
        json.dumps({key: value for key, value in vocab.items() if key != "Ā"})
    )
    with pytest.raises(UserError, match=r"no byte-level vocabulary: it lacks 'Ā'"):
        load_tokenizer(tmp_path / "0")


def test_a_difference_that_stays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a version of transformers may bring one: in ids, and in text."""
    encode = TokenizersBackend._encode_plus
    identity = tokenizer_identity(load_tokenizer(GIVEN))

    def without_spaces(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        return encode(self, text.replace(" ", ""), *args, **kwargs)

    monkeypatch.setattr(TokenizersBackend, "_encode_plus", without_spaces)
    with pytest.raises(
        UserError, match=r"LlamaTokenizerFast: .What is the sum of 1 and 2.. becomes .*by the file"
    ) as caught:
        load_tokenizer(GIVEN)
    assert str(GIVEN) in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    tokenizer = load_tokenizer(GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr(TokenizersBackend, "_encode_plus", without_spaces)
        assert tokenizer_identity(tokenizer) != identity
    assert tokenizer_identity(tokenizer) == identity
    monkeypatch.setattr(TokenizersBackend, "_decode", lambda self, token_ids, **_: "nothing")
    with pytest.raises(UserError, match=r"the tokens \[.*\] become 'nothing', but by the file 'What is"):
        load_tokenizer(GIVEN)


def test_identity(tmp_path: Path) -> None:
    first = tokenizer_identity(load_tokenizer(GIVEN))
    assert tokenizer_identity(dill.loads(dill.dumps(load_tokenizer(GIVEN)))) == first
    json.dumps(first)
    changes: list[dict[str, Any]] = [
        {"split_special_tokens": True},
        {"chat_template": "{{ 1 }}"},
        {"eos_token": "<｜begin▁of▁sentence｜>"},
    ]
    for number, change in enumerate(changes):
        changed = copy(GIVEN, tmp_path / str(number), **change)
        assert tokenizer_identity(load_tokenizer(changed)) != first
    same = copy(GIVEN, tmp_path / "same", "llama", tokenizer_class="PreTrainedTokenizerFast")
    assert tokenizer_identity(load_tokenizer(same)) == first


def test_a_tokenizer_that_lacks_tokens_for_the_trial(tmp_path: Path) -> None:
    """Small vocabularies without an unknown token refuse texts; those that they take are compared."""
    tokenizer: Any = Tokenizer(models.WordLevel({"one": 0, "two": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    loaded = load_tokenizer(tmp_path)
    assert loaded("two one").input_ids == [1, 0]
    assert tokenizer_identity(loaded) == tokenizer_identity(load_tokenizer(tmp_path))


def test_the_trial_has_what_the_issue_names() -> None:
    probe = trial.trial_texts()
    everything = "".join(probe)
    for part in (
        "  ",
        "\t",
        "\n\n",
        "\r\n",
        "345",
        "caf\u00e9",
        "e\u0301",
        "日本",
        "🎉",
        " before",
        "after ",
    ):
        assert part in everything
    assert "日本語と中文 한국어" not in trial.trial_texts(["中"])
