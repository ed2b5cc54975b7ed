"""Generate through an OpenAI-compatible server: completions of token ids, as vLLM's server takes them.

Every setting of sampling is sent: a server's own defaults may come from the model's generation_config.json.
At temperature 0 many prompts go in one request. Otherwise each sample is a request of its own: a request has
one seed, which all its prompts would share, noise and all.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from megatron_probsft.evaluation.engines.generation_progress import GenerationProgress
from megatron_probsft.evaluation.engines.vllm_runner import Engine, Finished, Generation, Seconds
from megatron_probsft.runtime.errors import UserError

CONCURRENCY = 128  # sampled requests under way; vLLM's own default is to compute 256 at once
GREEDY_BATCH = 64
_TIMEOUT = httpx.Timeout(None, connect=10.0)  # a generation may take long, and waits for its turn
_COMPARED = "What is the sum of 1 and 2? It  is\n three."
_PLAIN = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}  # from the model as it is


@dataclass(frozen=True)
class _Job:
    """A request."""

    prompts: list[list[int]]
    places: list[tuple[int, int]]
    """(prompt, sample) of each."""
    seed: int
    max_new_tokens: int


class Server:
    def __init__(self, url: str, model: str) -> None:
        """`url` ends in /v1. Asks which model is served. Raises UserError: no answer, or several models
        none of which is named as `model`."""
        self.url = url.rstrip("/")
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

    def generate(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: Sequence[int],
        stop_token_ids: Sequence[int],
        temperature: float,
        tokenizer: Any,
        finished: Finished,
    ) -> Seconds:
        """As `vllm_runner.generate`. A reply without token ids, of a server other than vLLM's, is encoded.

        Raises UserError: the server failed, or replies without token ids and writes other texts for the
        model's tokens than `tokenizer`.
        """
        started = time.perf_counter()
        body = {
            "model": self.model, "temperature": temperature, "stop_token_ids": list(stop_token_ids),
            "return_token_ids": True, **_PLAIN,
        }  # fmt: skip
        jobs = list(_jobs(prompts, seeds, max_new_tokens, GREEDY_BATCH if temperature == 0 else 1))
        progress = GenerationProgress(sum(map(len, seeds)), max(max_new_tokens))
        generations = all_tokens = 0

        def done(place: tuple[int, int], choice: dict[str, Any]) -> None:
            nonlocal generations, all_tokens
            tokens = choice.get("token_ids")
            if tokens is None:
                tokens = tokenizer.encode(choice["text"], add_special_tokens=False)
                if choice["finish_reason"] == "stop":
                    tokens.append(tokenizer.eos_token_id)
            finished(place[0], place[1], Generation(tokens, choice["finish_reason"]))
            generations += 1
            all_tokens += len(tokens)
            progress.show(generations, all_tokens, all_tokens)

        try:
            asyncio.run(self._post_all(jobs, body, tokenizer, done))
        except* UserError as group:
            raise group.exceptions[0] from None
        finally:
            progress.close()
        return Seconds(0.0, time.perf_counter() - started)

    async def _post_all(self, jobs: list[_Job], body: dict[str, Any], tokenizer: Any, done: Any) -> None:
        waiting, comparison = iter(jobs), None
        limits = httpx.Limits(max_connections=CONCURRENCY)

        async def work(client: httpx.AsyncClient) -> None:
            nonlocal comparison
            for job in waiting:
                own = {"prompt": job.prompts, "seed": job.seed, "max_tokens": job.max_new_tokens}
                choices = await self._post(client, body | own, len(job.prompts))
                if any(choice.get("token_ids") is None for choice in choices):
                    comparison = comparison or asyncio.ensure_future(self._compare_texts(client, tokenizer))
                    await comparison  # before anything is kept
                for choice in choices:
                    done(job.places[choice["index"]], choice)

        async with httpx.AsyncClient(timeout=_TIMEOUT, limits=limits) as client, asyncio.TaskGroup() as group:
            for _ in range(min(CONCURRENCY, len(jobs))):
                group.create_task(work(client))

    async def _compare_texts(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        """UserError if the server's tokenizer writes other texts, as without the spaces, than `tokenizer`.

        Asks as vLLM, llama.cpp and SGLang can be asked; of a server that cannot, it says so.
        """
        ids = tokenizer(_COMPARED, add_special_tokens=False)["input_ids"]
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
        expected = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
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


def served_engine(server: Server) -> Engine:
    """What is known of a server's engine."""
    return Engine("as served", server.url, "as served")


def _jobs(
    prompts: Sequence[list[int]], seeds: Sequence[Sequence[int]], max_new_tokens: Sequence[int], batch: int
) -> Iterator[_Job]:
    """Requests of up to `batch` samples, whose longest generation is the same."""
    flat = [(place, sample) for place, of_prompt in enumerate(seeds) for sample in range(len(of_prompt))]
    flat.sort(key=lambda one: -max_new_tokens[one[0]])
    for most, alike in itertools.groupby(flat, key=lambda one: max_new_tokens[one[0]]):
        for places in map(list, itertools.batched(alike, batch)):
            first, sample = places[0]
            yield _Job([prompts[place] for place, _ in places], places, seeds[first][sample], most)
