"""Evaluation through a server, which here is a few lines in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_probsft.commands.evaluate import parse_arguments
from megatron_probsft.data.tokenizers.load import load_tokenizer
from megatron_probsft.domains.registry import get_domain
from megatron_probsft.evaluation.run import evaluate
from megatron_probsft.runtime.errors import UserError


class Stub(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: list[dict[str, Any]] = [{"id": "served", "max_model_len": 200}]
        self.asked: list[dict[str, Any]] = []
        self.token_ids = True
        self.fail_after: int | None = None
        self.detokenize: Callable[[list[int]], dict[str, str]] | None = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        self._reply(200, {"data": self.server.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/detokenize":
            known = self.server.detokenize
            self._reply(200, known(body["tokens"])) if known else self._reply(404, {"error": "not found"})
            return
        self.server.asked.append(body)
        if self.server.fail_after is not None and len(self.server.asked) > self.server.fail_after:
            self._reply(500, {"error": "out of\nmemory"})
            return
        choices = [
            {
                "index": index, "text": "three", "finish_reason": "length",
                **({"token_ids": [5 + (body["seed"] + sum(prompt)) % 300]} if self.server.token_ids else {}),
            }
            for index, prompt in enumerate(body["prompt"])
        ]  # fmt: skip
        self._reply(200, {"choices": choices[::-1]})

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def run(stub: Stub, model: Path, folder: Path, *flags: str) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"{n} and two?", "answer": "3"} for n in range(70)]
    (folder / "task.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        "--model", str(model), "--task", str(folder / "task.jsonl"), "--output", str(folder / "out"),
        "--server", stub.url, "--max-new-tokens", "8", *flags,
    ]  # fmt: skip
    evaluate(parse_arguments(arguments))
    return [json.loads(line) for line in (folder / "out" / "generations.jsonl").read_text().splitlines()]


def test_sampled_requests_have_their_own_seeds(stub: Stub, tiny_llama: Path, tmp_path: Path) -> None:
    lines = run(stub, tiny_llama, tmp_path, "--samples", "2", "--temperature", "1")
    assert len(lines) == len(stub.asked) == 140
    assert {body["seed"] for body in stub.asked} == {line["seed"] for line in lines}
    body = stub.asked[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("served", 1.0, 8)
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert {name: body[name] for name in neutral} == neutral  # else the model's generation_config decides
    [prompt] = body["prompt"]
    assert all(isinstance(token, int) for token in prompt)
    by_seed = {body["seed"]: 5 + (body["seed"] + sum(body["prompt"][0])) % 300 for body in stub.asked}
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama)
    for line in lines:
        assert line["generation"] == tokenizer.decode([by_seed[line["seed"]]], skip_special_tokens=True)


def test_the_summary_names_the_task_and_its_version(stub: Stub, tiny_llama: Path, tmp_path: Path) -> None:
    rows = [{"problem": f"{n} and two?", "answer": str(n + 2)} for n in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = run(stub, tiny_llama, tmp_path / "math", "--task", "math", "--data", str(tmp_path / "sums.jsonl"))
    assert [(line["benchmark"], line["id"], line["sample"]) for line in lines] == [
        ("sums", str(problem), sample) for problem in range(3) for sample in range(16)
    ]
    run(stub, tiny_llama, tmp_path / "file")
    found = {}
    for name in ("math", "file"):
        summary = json.loads((tmp_path / name / "out" / "summary.json").read_text())
        found[name] = tuple(summary[key] for key in ("task", "task_version", "grader", "n", "template"))
    assert found == {
        "math": ("math", get_domain("math").version, "math", 3, "qwen-boxed"),
        "file": (str(tmp_path / "file" / "task.jsonl"), None, "exact", 70, "chat"),
    }


def test_greedy_prompts_share_requests(stub: Stub, tiny_llama: Path, tmp_path: Path) -> None:
    stub.token_ids = False  # a server other than vLLM's
    lines = run(stub, tiny_llama, tmp_path)
    assert sorted(len(body["prompt"]) for body in stub.asked) == [6, 64]
    assert {line["generation"] for line in lines} == {"three"}


@pytest.mark.parametrize("name", ["prompt", "content", "text"])  # of vLLM, llama.cpp, SGLang
def test_texts_of_a_tokenizer_that_loses_spaces_are_not_judged(
    name: str, stub: Stub, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(tiny_llama)
    stub.detokenize = lambda ids: {name: tokenizer.decode(ids).replace(" ", "")}
    run(stub, tiny_llama, tmp_path / "with ids")  # which are decoded here
    stub.token_ids = False
    with pytest.raises(UserError, match=r"writes 'Whatisthe.* for the tokens of 'What is the") as caught:
        run(stub, tiny_llama, tmp_path / "lost")
    assert "\n" not in str(caught.value)
    stored = map(json.loads, (tmp_path / "lost" / "out" / "unfinished.jsonl").read_text().splitlines())
    assert not [line for line in stored if "key" in line]
    stub.detokenize = lambda ids: {name: " " + tokenizer.decode(ids)}
    assert {line["generation"] for line in run(stub, tiny_llama, tmp_path / "right")} == {"three"}
    assert "/detokenize" not in capsys.readouterr().out
    stub.detokenize = None
    assert {line["generation"] for line in run(stub, tiny_llama, tmp_path / "unknown")} == {"three"}
    assert capsys.readouterr().out.count("its texts are judged as they are") == 1


def test_a_failure_is_one_line_and_what_came_is_kept(stub: Stub, tiny_llama: Path, tmp_path: Path) -> None:
    stub.fail_after = 60
    flags = ("--samples", "2", "--temperature", "1")
    with pytest.raises(UserError, match=r"--server http.*/v1: 500: .*out of") as caught:
        run(stub, tiny_llama, tmp_path, *flags)
    assert "\n" not in str(caught.value)
    stored = map(json.loads, (tmp_path / "out" / "unfinished.jsonl").read_text().splitlines())
    kept = {(line["key"][1], line["key"][2]) for line in stored if "key" in line}
    assert 0 < len(kept) <= 60
    stub.fail_after, stub.asked = None, []
    lines = run(stub, tiny_llama, tmp_path, *flags)
    assert len(lines) == 140
    kept_seeds = {line["seed"] for line in lines if (line["id"], line["sample"]) in kept}
    assert len(kept_seeds) == len(kept)
    assert kept_seeds.isdisjoint(body["seed"] for body in stub.asked)


def test_generations_end_where_the_server_s_room_does(
    stub: Stub, tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each prompt with its own: requests of greedy prompts hold those that have the same."""
    stub.models[0]["max_model_len"] = 40
    run(stub, tiny_llama, tmp_path, "--max-new-tokens", "39")
    for body in stub.asked:
        assert {len(prompt) + body["max_tokens"] for prompt in body["prompt"]} == {40}
    assert sum(len(body["prompt"]) for body in stub.asked) == 70
    assert "70 of 70 prompts leave room for fewer than --max-new-tokens 39" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["prompts_with_less_room"], summary["served_model"]) == (70, "served")


def test_the_server_s_model_is_checked(
    stub: Stub, tiny_llama: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    stub.models = [{"id": "base", "root": str(tiny_qwen2)}]
    with pytest.raises(UserError, match=r"serves .*qwen2, whose weights are not those of --model .*llama"):
        run(stub, tiny_llama, tmp_path)
    stub.models = [{"id": "one"}, {"id": "two"}]
    with pytest.raises(UserError, match=r"serves one, two: not .*llama"):
        run(stub, tiny_llama, tmp_path)
    stub.models.append({"id": "three", "root": str(tiny_llama)})
    run(stub, tiny_llama, tmp_path)
    assert stub.asked[-1]["model"] == "three"
