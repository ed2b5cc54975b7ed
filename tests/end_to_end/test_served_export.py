"""A base model trained on ChatML, exported and served by vLLM as it is: it ends its answers by itself."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.ranks import free_port
from tests.support.training_runs import config_for, train

END_OF_TEXT, IM_END = 0, 2
POSITIONS = 256


def base_variant(smollm2: Path, folder: Path) -> Path:
    """SmolLM2 as a base model comes: its EOS is <|endoftext|>, its ChatML ends turns with <|im_end|>."""
    shutil.copytree(smollm2, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        assert settings["eos_token_id"] == IM_END
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": END_OF_TEXT}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    return folder


def write_conversations(file: Path) -> Path:
    capitals = [("France", "Paris"), ("Italy", "Rome"), ("Japan", "Tokyo"), ("Peru", "Lima")]
    rows = []
    for (country, capital), (other, answer) in zip(capitals, capitals[1:] + capitals[:1], strict=True):
        pairs = [("user", f"What is the capital of {country}?"), ("assistant", f"{capital}.")]
        pairs += [("user", f"And of {other}?"), ("assistant", f"{answer}.")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in pairs]})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@contextlib.contextmanager
def served(model: Path, log: Path) -> Iterator[str]:
    """The URL of a vLLM server with default settings, but for what a small CPU needs."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager",
        "--kv-cache-memory-bytes", "64M", "--max-model-len", str(POSITIONS),
    ]  # fmt: skip
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TORCH_COMPILE_DISABLE": "1",
    }  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while server.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").is_success:
                        break
                time.sleep(0.5)
            assert server.poll() is None, log.read_text()[-3000:]
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def answer(url: str, **request: Any) -> dict[str, Any]:
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    reply = httpx.post(f"{url}/v1/chat/completions", json={"model": model, **request}, timeout=300)
    assert reply.is_success, reply.text
    return reply.json()


def test_a_base_model_trained_on_chatml_stops_in_a_plain_server(smollm2: Path, tmp_path: Path) -> None:
    base = base_variant(smollm2, tmp_path / "base")
    data = write_conversations(tmp_path / "capitals.jsonl")
    config = config_for(
        tmp_path / "run", base, data,
        train_iters=3, global_batch_size=4, lr=1e-4, min_lr=1e-4, lr_warmup_iters=0,
        save_hf=str(tmp_path / "export"),
    )  # fmt: skip
    train(1, config)
    settings = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [END_OF_TEXT, IM_END]
    with served(tmp_path / "export", tmp_path / "server.log") as url:
        question = [{"role": "user", "content": "What is the capital of Italy?"}]
        reply = answer(url, messages=question, seed=0)
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == IM_END  # not the tokenizer's EOS
    assert choice["message"]["content"]
    assert reply["usage"]["completion_tokens"] < 50
