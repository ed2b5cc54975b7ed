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

from megatron_probsft.checkpoint.hf.safetensors_folder import TensorReader
from megatron_probsft.checkpoint.hf.weights import check_tensors, load_hf_weights
from megatron_probsft.checkpoint.megatron.torch_dist import load_model
from megatron_probsft.checkpoint.megatron.torch_dist_reader import BlockReader
from megatron_probsft.models.build import build_model, transformer_config
from megatron_probsft.models.hf_model import HFModel, read_hf_model
from megatron_probsft.models.layout import Parallelism
from megatron_probsft.runtime.device import current_device
from megatron_probsft.runtime.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of the largest logit: in float32, models with the same mathematics come out within 4e-6 of each other,
# depending on the processor; a wrong weight anywhere is far beyond.
_FP32_LOGITS, _FP32_HIDDEN = 1e-5, 1e-4
# In bfloat16 rounding decides, at single positions wildly: so ours may on the whole (log-probabilities by
# their mean, hidden states by the median position) be this much further from float32 than transformers'.
_BF16_FACTOR = 1.5
LOGITS = "output layer"
_LIMITS = {
    "fp32": f"{_FP32_LOGITS:g} × the largest logit, for the log-probability that is furthest off; "
    f"{_FP32_HIDDEN:g} of their norm, for the hidden states after each layer",
    "bf16": f"{_BF16_FACTOR:g} × the distance of transformers' own bf16 from its fp32, which is rounding "
    "alone; log-probabilities on average, hidden states at the median position",
}


@dataclass(frozen=True)
class Check:
    """A distance of ours from transformers in fp32, and what it may be."""

    place: str
    """`embedding`, `layer 0`, …, `final norm`: of the hidden states; LOGITS: of the log-probabilities."""
    departure: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.departure <= self.limit  # NaN departs

    @property
    def share(self) -> float:
        """Of the limit that is taken."""
        return self.departure / self.limit if self.limit else 0.0  # rounding changes nothing: both are 0


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
    checks: list[Check]
    """All that the verdict follows from, in the order of the computation; the last is `departure`'s."""
    worst_position: int
    top1_agreement: float
    """Share of positions at which both find the same token likeliest."""
    layers: dict[str, float]
    """Relative difference of the hidden states at the median position: embedding, layer 0, …, final norm."""
    first_departure: str | None
    """The first of the layers, or `output layer`, beyond what rounding explains; None: equal."""

    def worst_check(self) -> Check:
        """The failed check that comes first, or the one nearest to its limit."""
        failed = [check for check in self.checks if not check.passed]
        return failed[0] if failed else max(self.checks, key=lambda check: check.share)


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
        UserError: a text of fewer than two tokens, longer than the model's context, or with tokens that the
            embedding has no row for; weights that cannot be read or are not those of config.json.
    """
    if not 2 <= len(token_ids) <= hf.shape.max_position_embeddings:
        raise UserError(
            f"the text has {len(token_ids)} tokens; it needs 2 to {hf.shape.max_position_embeddings}, the "
            "model's context"
        )
    if max(token_ids) >= hf.shape.vocab_size:
        raise UserError(
            f"the tokenizer makes id {max(token_ids)} of the text, but {hf.folder / 'config.json'} has "
            f"vocab_size {hf.shape.vocab_size}: it is another model's, or has tokens that got no rows"
        )
    check_tensors(TensorReader(hf.folder), hf)
    if checkpoint is not None:
        _check_vocabulary(checkpoint, hf)
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


def _check_vocabulary(checkpoint: Path, hf: HFModel) -> None:
    """More rows than the vocabulary are padding; Megatron-Core would fill up fewer."""
    embedding = BlockReader(checkpoint).tensors.get("embedding.word_embeddings.weight")
    rows = embedding.size[0] if embedding else 0
    own = checkpoint / "hf" / "config.json"
    vocabulary = (
        read_hf_model(own.parent).shape.vocab_size if own.is_file() else min(rows, hf.shape.vocab_size)
    )
    if vocabulary != hf.shape.vocab_size or rows < vocabulary:
        raise UserError(
            f"{checkpoint} has an embedding of {rows} rows, {vocabulary} of them the vocabulary's, but "
            f"{hf.folder / 'config.json'} has vocab_size {hf.shape.vocab_size}: they are different models"
        )


def sentence(verdict: Verdict) -> str:
    """The verdict, the number that decided it, its limit, and what the limits mean."""
    check, failed = verdict.worst_check(), [check for check in verdict.checks if not check.passed]
    what = "log-probabilities" if check.place == LOGITS else f"hidden states after {check.place}"
    figures = f"{what}: {check.departure:.3e} from transformers in fp32, limit {check.limit:.3e}"
    if failed:
        more = f"; {len(failed)} of {len(verdict.checks)} limits exceeded" if len(failed) > 1 else ""
        head = f"departs first at: {check.place} ({figures}{more})"
    else:
        head = f"the same but for rounding (nearest to its limit, {figures})"
    return f"{verdict.dtype}: {head}\n  limits: {_LIMITS[verdict.dtype]}"


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
    checks = [
        Check(place, _distance(states, exact.hidden[place]), hidden_limits[place])
        for place, states in ours.hidden.items()
    ]
    departure = departure_of(ours, exact)
    checks.append(Check(LOGITS, departure, limit))
    return Verdict(
        dtype,
        len(of_labels),
        of_labels.max().item(),
        of_labels.mean().item(),
        difference.max().item(),
        departure,
        limit,
        checks,
        int(of_labels.argmax()),
        (log_p.argmax(1) == reference.argmax(1)).float().mean().item(),
        {place: _distance(states, theirs.hidden[place]) for place, states in ours.hidden.items()},
        next((check.place for check in checks if not check.passed), None),
    )


def _largest(run: _Run, other: _Run) -> float:
    return (run.log_probs() - other.log_probs()).abs().max().item()


def _mean(run: _Run, other: _Run) -> float:
    return (run.log_probs() - other.log_probs()).abs().mean().item()


def _distance(states: torch.Tensor, reference: torch.Tensor) -> float:
    return ((states - reference).norm(dim=1) / reference.norm(dim=1)).median().item()


def _transformers(hf: HFModel, token_ids: list[int], dtype: torch.dtype) -> _Run:
    device = current_device()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(hf.folder, dtype=dtype)
    except Exception as error:  # of what weights and config may have, transformers raises many kinds
        raise UserError(f"transformers cannot load {hf.folder}: {' '.join(str(error).split())}") from None
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
    device = current_device()
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
