"""Generate through an OpenAI-compatible server: completions of token ids, as vLLM's server takes them.

Every setting of sampling is sent: a server's own defaults may come from the model's generation_config.json.
At temperature 0 many prompts go in one request. Otherwise each sample is a request of its own: a request has
one seed, which all its prompts would share, noise and all.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx

from megatron_probsft.evaluation.engines.engine import Decoding, EngineFacts, Listener, Seconds
from megatron_probsft.evaluation.engines.generation_progress import GenerationProgress
from megatron_probsft.evaluation.request import Generation, Request
from megatron_probsft.runtime.errors import UserError

CONCURRENCY = 128  # sampled requests under way; vLLM's own default is to compute 256 at once
GREEDY_BATCH = 64
_TIMEOUT = httpx.Timeout(None, connect=10.0)  # a generation may take long, and waits for its turn
_COMPARED = "What is the sum of 1 and 2? It  is\n three."
_Done = Callable[[Request, dict[str, Any]], None]  # takes a request and the server's choice for it
_PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # from the model as it is


class Server:
    """An `Engine` that asks a server."""

    def __init__(self, url: str, model: str, tokenizer: Any) -> None:
        """Ask which model is served. `url` ends in /v1; `tokenizer` is the model's.

        Raises UserError: no answer, or several models none of which is named as `model`.
        """
        self.url, self._tokenizer = url.rstrip("/"), tokenizer
        try:
            reply = httpx.get(f"{self.url}/models", timeout=10.0)
            reply.raise_for_status()
            models = reply.json()["data"]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"--server {url} lists no models: {str(error) or type(error).__name__}; give the URL of an "
                "OpenAI-compatible server up to /v1, as http://localhost:8000/v1"
            ) from None
        named = [one for one in models if model in (one.get("id"), one.get("root"))]
        if not named and len(models) != 1:
            raise UserError(f"--server {url} serves {', '.join(one['id'] for one in models)}: not {model}")
        served = (named or models)[0]
        self.model: str = served["id"]
        self.root: str = served.get("root") or served["id"]
        """Its folder, if the server says so."""
        self.max_model_len: int | None = served.get("max_model_len")

    def generate(self, requests: Sequence[Request], decoding: Decoding, listener: Listener) -> Seconds:
        """See `Engine`. A reply without token ids, of a server other than vLLM's, is encoded.

        Raises UserError: the server failed, or replies without token ids and writes other texts for the
        model's tokens than its tokenizer.
        """
        started = time.perf_counter()
        listener.started(EngineFacts("as served", self.url, "as served"))
        body = {
            "model": self.model, "temperature": decoding.temperature,
            "stop_token_ids": list(decoding.stop_token_ids), "return_token_ids": True, **_PLAIN,
        }  # fmt: skip
        posts = list(_posts(requests, GREEDY_BATCH if decoding.temperature == 0 else 1))
        progress = GenerationProgress(len(requests), max(one.max_new_tokens for one in requests))
        generations = all_tokens = 0

        def done(request: Request, choice: dict[str, Any]) -> None:
            nonlocal generations, all_tokens
            generation = self._generation(choice)
            listener.finished(request, generation)
            generations += 1
            all_tokens += len(generation.tokens)
            progress.show(generations, all_tokens, all_tokens)

        try:
            asyncio.run(self._post_all(posts, body, done))
        except* UserError as group:
            raise group.exceptions[0] from None
        finally:
            progress.close()
        return Seconds(0.0, time.perf_counter() - started)

    def _generation(self, choice: dict[str, Any]) -> Generation:
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = self._tokenizer.encode(choice["text"], add_special_tokens=False)
            if choice["finish_reason"] == "stop":
                tokens.append(self._tokenizer.eos_token_id)
        return Generation(tokens, choice["finish_reason"])

    async def _post_all(self, posts: list[list[Request]], body: dict[str, Any], done: _Done) -> None:
        """Send all, `CONCURRENCY` at a time."""
        waiting, comparison = iter(posts), None
        limits = httpx.Limits(max_connections=CONCURRENCY)

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal comparison
            for post in waiting:
                own = {
                    "prompt": [one.prompt for one in post], "seed": post[0].seed,
                    "max_tokens": post[0].max_new_tokens,
                }  # fmt: skip
                choices = await self._post(client, body | own, len(post))
                if any(choice.get("token_ids") is None for choice in choices):
                    comparison = comparison or asyncio.ensure_future(self._compare_texts(client))
                    await comparison  # before anything is kept
                for choice in choices:
                    done(post[choice["index"]], choice)

        async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits) as client, asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENCY, len(posts))):
                group.create_task(work(client))

    async def _compare_texts(self, client: httpx.AsyncClient) -> None:
        """Raise UserError if the server's tokenizer writes other texts than the model's, as without spaces.

        Asks as vLLM, llama.cpp and SGLang can be asked; of a server that cannot, it says so.
        """
        ids = self._tokenizer(_COMPARED, add_special_tokens=False)["input_ids"]
        try:
            reply = await client.post(
                f"{self.url.removesuffix('/v1')}/detokenize", json={"model": self.model, "tokens": ids}
            )
            texts = reply.raise_for_status().json()
            text: str = next(texts[name] for name in ("prompt", "content", "text") if name in texts)
        except (httpx.HTTPError, ValueError, TypeError, StopIteration):
            print(
                f"{self.url} gives no token ids and has no /detokenize: its texts are judged as they are",
                flush=True,
            )
            return
        expected = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if text.strip() != expected.strip():
            raise UserError(
                f"--server {self.url} writes {text!r} for the tokens of {expected!r}: its tokenizer is not "
                "the model's, and its texts cannot be judged; use a server that returns token ids, as vLLM's"
            )

    async def _post(
        self, client: httpx.AsyncClient, body: dict[str, Any], wanted: int
    ) -> list[dict[str, Any]]:
        try:
            reply = await client.post(f"{self.url}/completions", json=body)
            if reply.is_error:
                raise UserError(
                    f"--server {self.url}: {reply.status_code}: {' '.join(reply.text.split())[:300]}"
                )
            choices = reply.json()["choices"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise UserError(
                f"--server {self.url} failed: {str(error) or type(error).__name__}; the same command resumes"
            ) from None
        if sorted(choice["index"] for choice in choices) != list(range(wanted)):
            raise UserError(f"--server {self.url} gave {len(choices)} completions for {wanted} prompts")
        return choices


def _posts(requests: Sequence[Request], batch: int) -> Iterator[list[Request]]:
    """The requests that go to the server together: up to `batch` whose longest generation is the same."""
    ordered = sorted(requests, key=lambda one: -one.max_new_tokens)
    for _, alike in itertools.groupby(ordered, key=lambda one: one.max_new_tokens):
        yield from map(list, itertools.batched(alike, batch))
