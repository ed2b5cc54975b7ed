"""A run on a tokenizer that transformers 5 reads wrongly: what is trained, said and exported."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.support.training_runs import config_for, train

ROOT = Path(__file__).parents[2]
BYTE_LEVEL = Path(__file__).parents[1] / "data" / "byte_level_llama_tokenizer"


@pytest.mark.size("test")
def test_a_run_keeps_its_spaces_and_says_who_loses_them(
    tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model, ignore=shutil.ignore_patterns("*token*", "chat_template*"))
    for file in BYTE_LEVEL.iterdir():
        shutil.copyfile(file, model / file.name)
    rows = [{"prompt": f"What is  the sum of {n} and 2?", "response": f"it is\n\t {n + 2}"} for n in range(8)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save, exported = tmp_path / "run", tmp_path / "exported"
    train(1, config_for(save, model, data, template="plain", train_iters=2))
    said = capfd.readouterr().out.splitlines()
    [note] = [line for line in said if "AutoTokenizer" in line]
    assert note.startswith(f"{model}: ")
    assert '"tokenizer_class": "PreTrainedTokenizerFast"' in note

    file: Any = Tokenizer.from_file(str(BYTE_LEVEL / "tokenizer.json"))
    [stored] = data.with_suffix(".cache").glob("*/tokens.bin")
    expected = [
        [*file.encode(row["prompt"]).ids, *file.encode(row["response"], add_special_tokens=False).ids, 1]
        for row in rows
    ]
    assert np.fromfile(stored, dtype=np.int32).tolist() == [token for sample in expected for token in sample]

    command = [
        "tools/convert_checkpoint.py",
        "megatron-to-hf",
        "--megatron",
        str(save),
        "--hf",
        str(exported),
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "warning: " not in done.stdout
    original = BYTE_LEVEL / "tokenizer.json"
    assert (exported / original.name).read_bytes() == original.read_bytes()
    # A server, which opens it with transformers, reads what was trained: the class is another one.
    served = AutoTokenizer.from_pretrained(exported)
    text = rows[0]["response"]
    assert served(text, add_special_tokens=False).input_ids == file.encode(text, add_special_tokens=False).ids
