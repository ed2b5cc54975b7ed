"""SmolLM2 through the tool, there and back, and what vLLM makes of the folder that comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_probsft.checkpoint.sample_text import SAMPLE_TEXT

ROOT = Path(__file__).parents[2]
# log p of each token but the first, as vLLM computes it; in a process of its own.
SCORE = """
import json, os, sys
os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
import vllm
model, tokens, target = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
llm = vllm.LLM(model=model, dtype="float32", max_model_len=1024, max_num_seqs=1, enforce_eager=True,
               skip_tokenizer_init=True, kv_cache_memory_bytes=2**28)
sampling = vllm.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
(output,) = llm.generate([{"prompt_token_ids": tokens}], sampling)
found = [scores[token].logprob for token, scores in zip(tokens[1:], output.prompt_logprobs[1:])]
open(target, "w").write(json.dumps(found))
"""


def _tool(*arguments: str | Path) -> str:
    command = [sys.executable, "tools/convert_checkpoint.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_round_trip_and_vllms_log_probabilities(smollm2: Path, tmp_path: Path) -> None:
    _tool("hf-to-megatron", "--hf", smollm2, "--megatron", tmp_path / "megatron")
    _tool("megatron-to-hf", "--megatron", tmp_path / "megatron", "--hf", tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (smollm2, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

    tokens = AutoTokenizer.from_pretrained(smollm2)(SAMPLE_TEXT).input_ids
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    with torch.no_grad():
        log_p = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    expected = log_p[:-1].gather(1, torch.tensor(tokens[1:])[:, None]).squeeze(1)
    subprocess.run(
        [sys.executable, "-c", SCORE, tmp_path / "back", json.dumps(tokens), tmp_path / "scores.json"],
        check=True, timeout=300, env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
    )  # fmt: skip
    found = torch.tensor(json.loads((tmp_path / "scores.json").read_text()))
    assert len(found) == len(tokens) - 1 > 400
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_verify_and_inspect(smollm2: Path, tmp_path: Path) -> None:
    """As a user runs them."""
    report = tmp_path / "verify.json"
    printed = _tool("verify", "--hf", smollm2, "--dtype", "fp32", "--hidden-states", "--json", report)
    assert "fp32: the same but for rounding" in printed
    assert "final norm" in printed
    found = json.loads(report.read_text())
    assert found["max_abs_logprob_diff"] < 1e-4
    assert found["equal"] is True
    printed = _tool("inspect", "--hf", smollm2, "--json", report)
    assert "134,515,008" in printed
    assert json.loads(report.read_text())["family"] == "llama"
