"""The model of an evaluation: opened once, with all that decides what it is asked and where it stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_probsft.data.text.templates import encode_prompts
from megatron_probsft.domains.benchmarks.problems import Problem, sample_seed
from megatron_probsft.domains.domain import Domain
from megatron_probsft.domains.task import Task
from megatron_probsft.domains.templates import default_template
from megatron_probsft.evaluation.engines.server import Server
from megatron_probsft.evaluation.model_files import load_model_files, stop_tokens, template_date
from megatron_probsft.evaluation.model_folder import fingerprint
from megatron_probsft.evaluation.request import Generation, Request, Sampling
from megatron_probsft.evaluation.settings import Settings
from megatron_probsft.evaluation.unfinished import settings_of
from megatron_probsft.runtime.errors import UserError


@dataclass(frozen=True)
class OpenedModel:
    """A model that is to be evaluated.

    Attributes:
        weights: tells it from other models, also under the same name.
        server: where it is served, if it is.
        date: what a chat template shows as today's; None if it shows none.
        max_model_len: tokens of a prompt and its generation, where somebody has limited them.
        stops: the tokens that end a generation.
    """

    tokenizer: Any
    config: Any
    weights: str
    server: Server | None
    template: str
    date: str | None
    max_model_len: int | None
    stops: list[int]

    def requests(self, problems: Sequence[Problem], sampling: Sampling, seed: int) -> list[Request]:
        """The requests of all samples of each problem in turn.

        Raises UserError: a prompt that is empty or leaves no room; a limit beyond the model's positions.
        """
        limit, positions = self.max_model_len, getattr(self.config, "max_position_embeddings", None)
        if limit and positions and limit > positions:
            raise UserError(f"--max-model-len {limit} exceeds the model's {positions} positions")
        room = limit or positions
        texts = [problem.prompt for problem in problems]
        prompts = encode_prompts(self.tokenizer, texts, self.template, date=self.date)
        requests: list[Request] = []
        for problem, prompt in zip(problems, prompts, strict=True):
            if not prompt:
                raise UserError(f"{problem.where}: the prompt is empty")
            if room and len(prompt) >= room:
                what = f"--max-model-len {room}" if limit else f"the model's {room} positions"
                raise UserError(f"{problem.where}: {len(prompt)} prompt tokens leave no room in {what}")
            longest = sampling.max_new_tokens
            longest = min(longest, room - len(prompt)) if room else longest
            for sample in range(sampling.samples):
                own = sample_seed(seed, problem, sample)
                requests.append(Request(problem, sample, prompt, longest, own))
        return requests

    def text(self, generation: Generation) -> str:
        """The generation as text, without the token that ended it."""
        tokens = generation.tokens[:-1] if generation.finish_reason == "stop" else generation.tokens
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def open_model_folder(settings: Settings, task: Task) -> OpenedModel:
    """Load tokenizer and config, ask the server if there is one, and settle template, date and stops.

    Raises UserError: a folder or a server that cannot be used; no template for this task and tokenizer.
    """
    tokenizer, config, ends = load_model_files(settings.model)
    template = settings.template or _template(task, tokenizer)
    heads = getattr(config, "num_attention_heads", None)
    if heads and heads % settings.tensor_parallel_size:
        raise UserError(
            f"--tensor-parallel-size {settings.tensor_parallel_size} does not divide the model's {heads} "
            "attention heads"
        )
    weights = fingerprint(settings.model)
    server = _server(settings, weights, tokenizer) if settings.server else None
    begun = settings_of(settings.output).get("--template-date")
    return OpenedModel(
        tokenizer, config, weights, server, template,
        date=settings.template_date or template_date(settings.model, tokenizer, template, begun),
        max_model_len=server.max_model_len if server else settings.max_model_len,
        stops=stop_tokens(settings.model, tokenizer, template, ends),
    )  # fmt: skip


def _template(task: Task, tokenizer: Any) -> str:
    """The domain's for the model's family; of a file, the model's chat template."""
    if not isinstance(task, Domain):
        return "chat"
    try:
        return default_template(task, tokenizer)
    except UserError as error:
        raise UserError(f"{error}: name a --template, as chat or plain") from None


def _server(settings: Settings, weights: str, tokenizer: Any) -> Server:
    """The server. Raises UserError: as far as this machine can see, it serves another model."""
    url = str(settings.server)
    server = Server(url, str(settings.model), tokenizer)
    if (Path(server.root) / "config.json").is_file() and fingerprint(Path(server.root)) != weights:
        raise UserError(
            f"--server {url} serves {server.root}, whose weights are not those of --model {settings.model}"
        )
    print(f"{url} serves {server.model}", flush=True)
    return server
