"""Is our Megatron model the model that transformers runs? Log-probabilities and hidden states on a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from transformers import AutoModelForCausalLM

from megatron_probsft.checkpoint.hf_weights import load_hf_weights
from megatron_probsft.checkpoint.torch_dist import load_model
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import HFModel
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of the largest logit: in float32, models with the same mathematics come out within 4e-6 of each other,
# depending on the processor; a wrong weight anywhere is far beyond.
_FP32_LOGITS, _FP32_HIDDEN = 1e-5, 1e-4
# In bfloat16 rounding decides, at single positions wildly: so ours may on the whole (log-probabilities by
# their mean, hidden states by the median position) be this much further from float32 than transformers'.
_BF16_FACTOR = 1.5


@dataclass(frozen=True)
class Verdict:
    """Of one dtype, over a text of `positions` + 1 tokens."""

    dtype: str
    positions: int
    max_abs_logprob_diff: float
    """Of the text's own tokens."""
    mean_abs_logprob_diff: float
    max_abs_logprob_diff_of_vocabulary: float
    """Of all tokens that could have come."""
    departure: float
    """From transformers in fp32, of all tokens' log-probabilities: fp32's largest one, bf16's mean."""
    limit: float
    """What `departure` may be."""
    worst_position: int
    top1_agreement: float
    """Share of positions at which both find the same token likeliest."""
    layers: dict[str, float]
    """Relative difference of the hidden states at the median position: embedding, layer 0, …, final norm."""
    first_departure: str | None
    """The first of the layers, or `output layer`, beyond what rounding explains; None: equal."""


@dataclass(frozen=True)
class _Run:
    """One model on the text: `[s, V]` logits and `[s, hidden]` states by place, float32 on the CPU."""

    logits: torch.Tensor
    hidden: dict[str, torch.Tensor]

    def log_probs(self) -> torch.Tensor:
        return torch.log_softmax(self.logits, dim=-1)


@torch.no_grad()
def verify(
    hf: HFModel,
    checkpoint: Path | None,
    token_ids: list[int],
    dtypes: list[str],
    log: Callable[[str], None],
) -> list[Verdict]:
    """Compare, in each of the dtypes, one model at a time in memory; needs groups of one process.

    Args:
        hf: the Hugging Face folder that transformers runs.
        checkpoint: of Megatron's, whose weights ours gets; None: those of the folder.
        log: is told what is being run.

    Raises:
        UserError: a text of fewer than two tokens, or longer than the model's context; weights that cannot
            be read.
    """
    if not 2 <= len(token_ids) <= hf.shape.max_position_embeddings:
        raise UserError(
            f"the text has {len(token_ids)} tokens; it needs 2 to {hf.shape.max_position_embeddings}, the "
            "model's context"
        )
    log("transformers, fp32")
    exact = _transformers(hf, token_ids, torch.float32)
    verdicts = []
    for name in dtypes:
        log(f"Megatron, {name}")
        ours = _megatron(hf, checkpoint, token_ids, DTYPES[name])
        if name == "fp32":
            limit = _FP32_LOGITS * exact.logits.abs().max().item()
            limits = dict.fromkeys(ours.hidden, _FP32_HIDDEN)
            verdicts.append(_compare(name, ours, exact, exact, token_ids, _largest, limit, limits))
            continue
        log(f"transformers, {name}")
        theirs = _transformers(hf, token_ids, DTYPES[name])
        limit = _BF16_FACTOR * _mean(theirs, exact)
        limits = {
            place: _BF16_FACTOR * _distance(states, exact.hidden[place])
            for place, states in theirs.hidden.items()
        }
        verdicts.append(_compare(name, ours, exact, theirs, token_ids, _mean, limit, limits))
    return verdicts


def _compare(
    dtype: str,
    ours: _Run,
    exact: _Run,
    theirs: _Run,
    token_ids: list[int],
    departure_of: Callable[[_Run, _Run], float],
    limit: float,
    hidden_limits: dict[str, float],
) -> Verdict:
    """Departures are from `exact`, reported differences from `theirs`, in the same dtype."""
    labels = torch.tensor(token_ids[1:])[:, None]
    log_p, reference = ours.log_probs(), theirs.log_probs()
    difference = (log_p - reference).abs()
    of_labels = difference[:-1].gather(1, labels).squeeze(1)
    departed = [
        place
        for place, states in ours.hidden.items()
        if not _distance(states, exact.hidden[place]) <= hidden_limits[place]  # NaN departs
    ]
    departure = departure_of(ours, exact)
    if not departure <= limit:
        departed.append("output layer")
    return Verdict(
        dtype,
        len(of_labels),
        of_labels.max().item(),
        of_labels.mean().item(),
        difference.max().item(),
        departure,
        limit,
        int(of_labels.argmax()),
        (log_p.argmax(1) == reference.argmax(1)).float().mean().item(),
        {place: _distance(states, theirs.hidden[place]) for place, states in ours.hidden.items()},
        departed[0] if departed else None,
    )


def _largest(run: _Run, other: _Run) -> float:
    return (run.log_probs() - other.log_probs()).abs().max().item()


def _mean(run: _Run, other: _Run) -> float:
    return (run.log_probs() - other.log_probs()).abs().mean().item()


def _distance(states: torch.Tensor, reference: torch.Tensor) -> float:
    return ((states - reference).norm(dim=1) / reference.norm(dim=1)).median().item()


def _transformers(hf: HFModel, token_ids: list[int], dtype: torch.dtype) -> _Run:
    device = torch.cuda.current_device()
    model: Any = AutoModelForCausalLM.from_pretrained(hf.folder, dtype=dtype)
    model.to(device).eval()
    body = model.model
    places = _places(body.embed_tokens, list(body.layers), body.norm)
    hidden = _watch(places, lambda output: output[0])
    logits = model(torch.tensor([token_ids], device=device)).logits[0]
    return _Run(logits.float().cpu(), hidden)


def _megatron(hf: HFModel, checkpoint: Path | None, token_ids: list[int], dtype: torch.dtype) -> _Run:
    (model,) = build_model(hf.shape, transformer_config(hf.shape, Parallelism(), dtype))
    if checkpoint is None:
        load_hf_weights([model], hf)
    else:
        load_model([model], checkpoint)
    decoder: Any = model.decoder
    places = _places(model.embedding, list(decoder.layers), decoder.final_layernorm)
    hidden = _watch(places, lambda output: output[:, 0])
    logits = _forward(model.eval(), token_ids)
    return _Run(logits[:, : hf.shape.vocab_size].float().cpu(), hidden)


def _forward(model: GPTModel, token_ids: list[int]) -> torch.Tensor:
    device = torch.cuda.current_device()
    bounds = torch.tensor([0, len(token_ids)], dtype=torch.int32, device=device)
    pack = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=len(token_ids),
        max_seqlen_kv=len(token_ids),
    )
    positions = torch.arange(len(token_ids), device=device)[None]
    tokens = torch.tensor([token_ids], device=device)
    return model(tokens, positions, None, packed_seq_params=pack)[0]


def _places(embedding: Any, layers: list[Any], norm: Any) -> dict[str, torch.nn.Module]:
    return {"embedding": embedding} | {f"layer {i}": layer for i, layer in enumerate(layers)} | {
        "final norm": norm
    }  # fmt: skip


def _watch(
    places: dict[str, torch.nn.Module], one_sequence: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Filled as the modules run: their outputs `[s, hidden]`, float32 on the CPU."""
    found: dict[str, torch.Tensor] = {}

    def keep(place: str, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        found[place] = one_sequence(states).float().cpu()

    for place, module in places.items():
        module.register_forward_hook(lambda _module, _args, output, place=place: keep(place, output))
    return found
