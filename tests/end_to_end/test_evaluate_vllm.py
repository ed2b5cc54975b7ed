"""Real vLLM on a tiny random Llama: greedy tokens are transformers' own, samples differ, seeds reproduce."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.domains.benchmarks.problems import Problem
from megatron_probsft.evaluation.engines.engine import Decoding, EngineFacts
from megatron_probsft.evaluation.engines.vllm_runner import VllmRunner, kv_bytes_per_token
from megatron_probsft.evaluation.request import Generation, Request
from tests.support.tiny_models import VOCAB_SIZE, save_tiny_tokenizer

BYTE_LEVEL = Path(__file__).parents[1] / "data" / "byte_level_llama_tokenizer"

ROOT = Path(__file__).parents[2]
LONGEST = [24, 24, 7, 24, 24]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """head_dim 32 is the smallest that vLLM knows on CPU; two query heads share one key head."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.15, dtype=torch.float32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


class Kept:
    """Listens to an engine, and keeps what it says."""

    def __init__(self) -> None:
        self.engines: list[EngineFacts] = []
        self.generations: dict[int, Generation] = {}

    def started(self, engine: EngineFacts) -> None:
        self.engines.append(engine)

    def finished(self, request: Request, generation: Generation) -> None:
        self.generations[request.problem.index] = generation


def test_greedy_tokens_equal_transformers(model: Path, tmp_path: Path) -> None:
    reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 320, (n,), generator=generator).tolist() for n in (1, 5, 17, 40, 150)]

    def greedy(prompt: list[int], stop: list[int], longest: int) -> list[int]:
        ids = torch.tensor([prompt])
        output = reference.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=longest,
            eos_token_id=stop, pad_token_id=0,
        )  # fmt: skip
        return output[0, len(prompt) :].tolist()

    stop = greedy(prompts[0], [VOCAB_SIZE - 1], 24)[3]  # met after at most four tokens of the first prompt
    kept = Kept()
    requests = [
        Request(Problem("tiny", str(place), place, "", "", ""), 0, prompt, longest, seed=7)
        for place, (prompt, longest) in enumerate(zip(prompts, LONGEST, strict=True))
    ]
    size = kv_bytes_per_token(reference.config)
    runner = VllmRunner(model, tmp_path / "vllm.log", size, dtype="float32")
    runner.generate(requests, Decoding([stop]), kept)
    generations = kept.generations
    assert [generations[place].tokens for place in range(5)] == [
        greedy(prompt, [stop], longest) for prompt, longest in zip(prompts, LONGEST, strict=True)
    ]
    for one in generations.values():
        assert one.finish_reason == ("stop" if one.tokens[-1] == stop else "length")
    assert len(generations[0].tokens) <= 4
    assert [engine.dtype for engine in kept.engines] == ["float32"]


def test_samples_differ_and_are_reproduced(model: Path, tmp_path: Path) -> None:
    """Sixteen samples of each of two problems that ask the same."""
    row = {"question": "what is one and two?", "answer": 3}
    others = [{**row, "question": f"{n} and " * 50} for n in range(8)]  # more tokens than one step computes
    rows = [row, row, *others]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(name: str) -> list[dict[str, Any]]:
        output = tmp_path / name
        flags = f"--model {model} --task {tmp_path}/task.jsonl --output {output} --prompt-key question"
        flags += " --grader number --samples 16 --temperature 1 --max-new-tokens 16"
        result = subprocess.run(
            [sys.executable, ROOT / "tools" / "evaluate.py", *flags.split()], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        assert "mean@16" in result.stdout
        return [json.loads(line) for line in (output / "generations.jsonl").read_text().splitlines()]

    first, second = run("first"), run("second")
    assert first == second
    assert [(line["index"], line["sample"]) for line in first] == [
        (i, s) for i in range(10) for s in range(16)
    ]
    first = first[:32]
    assert len({line["generation"] for line in first}) == 32
    assert len({line["seed"] for line in first}) == 32
    assert {line["answer"] for line in first} == {"3"}
    assert all(line["finish_reason"] == "length" or line["tokens"] < 16 for line in first)

    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert (summary["n"], summary["samples"], summary["grader"]) == (10, 16, "number")
    assert summary["accuracy"] == pytest.approx(sum(line["correct"] for line in second) / len(second))
    assert list(summary["benchmarks"]) == ["task"]
    assert list(summary["average"]["pass_at_k"]) == ["1", "2", "4", "8", "16"]
    low, high = summary["accuracy_ci95"]
    assert low <= summary["accuracy"] <= high
    assert summary["generated_tokens"] == sum(line["tokens"] for line in second)


def test_generations_keep_the_spaces_that_vllms_own_tokenizer_loses(tmp_path: Path) -> None:
    """A model that answers each token with one other, and so the prompt's last with a whole sentence."""
    model = tmp_path / "model"
    tokenizer = load_tokenizer(BYTE_LEVEL)
    answer = "it is two"
    chain = tokenizer("?" + answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=320, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=10, num_key_value_heads=1, max_position_embeddings=256, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, dtype=torch.float32,
    )  # fmt: skip
    llama = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in llama.model.layers.parameters():
            parameter.zero_()  # what remains is a token's embedding
        llama.model.embed_tokens.weight.copy_(torch.eye(len(tokenizer), 320))
        llama.lm_head.weight.zero_()
        llama.lm_head.weight[chain[1:]] = torch.eye(len(tokenizer), 320)[chain[:-1]]
    llama.save_pretrained(model)
    for file in BYTE_LEVEL.iterdir():
        shutil.copyfile(file, model / file.name)
    assert " " not in AutoTokenizer.from_pretrained(model).decode(chain[:-1])
    (tmp_path / "task.jsonl").write_text(json.dumps({"prompt": "What is  it?", "answer": answer}) + "\n")
    flags = f"--model {model} --task {tmp_path}/task.jsonl --output {tmp_path}/out --grader exact"
    flags += " --template plain --max-new-tokens 48"
    result = subprocess.run(
        [sys.executable, ROOT / "tools" / "evaluate.py", *flags.split()], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    [line] = map(json.loads, (tmp_path / "out" / "generations.jsonl").read_text().splitlines())
    assert line["generation"] == answer
    assert line["finish_reason"] == "stop"
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["accuracy"] == 1.0
