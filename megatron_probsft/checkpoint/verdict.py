"""Our model's outputs on a text against transformers': differences, their limits, the verdict in words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

LOGITS = "output layer"
# In float32, models with the same mathematics come out within 4e-6 of the largest logit of each other,
# depending on the processor; a wrong weight anywhere is far beyond.
_FP32_LOGITS, _FP32_HIDDEN = 1e-5, 1e-4
# In bfloat16 rounding decides, at single positions wildly: so ours may on the whole (log-probabilities by
# their mean, hidden states by the median position) be this much further from float32 than transformers'.
_BF16_FACTOR = 1.5
_LIMITS = {
    "fp32": f"{_FP32_LOGITS:g} × the largest logit, for the log-probability that is furthest off; "
    f"{_FP32_HIDDEN:g} of their norm, for the hidden states after each layer",
    "bf16": f"{_BF16_FACTOR:g} × the distance of transformers' own bf16 from its fp32, which is rounding "
    "alone; log-probabilities on average, hidden states at the median position",
}


@dataclass(frozen=True)
class Outputs:
    """One model on the text: its `[s, V]` logits and `[s, hidden]` states by place, float32 on the CPU."""

    logits: torch.Tensor
    hidden: dict[str, torch.Tensor]

    def log_probs(self) -> torch.Tensor:
        return torch.log_softmax(self.logits, dim=-1)


@dataclass(frozen=True)
class Check:
    """A distance of our model from transformers in fp32, and its limit."""

    place: str
    """`embedding`, `layer 0`, …, `final norm` for hidden states; LOGITS for the log-probabilities."""
    departure: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.departure <= self.limit  # NaN departs

    @property
    def share(self) -> float:
        """The departure in units of the limit."""
        return self.departure / self.limit if self.limit else 0.0  # rounding changes nothing: both are 0


@dataclass(frozen=True)
class Verdict:
    """The result for one dtype, over a text of `positions` + 1 tokens."""

    dtype: str
    positions: int
    max_abs_logprob_diff: float
    """This and the mean are over the text's own tokens."""
    mean_abs_logprob_diff: float
    max_abs_logprob_diff_of_vocabulary: float
    """The largest one over all tokens of the vocabulary, at any position."""
    departure: float
    """Distance from transformers in fp32 over the whole vocabulary: in fp32 the largest, in bf16 the mean."""
    limit: float
    """The largest `departure` that rounding explains."""
    checks: list[Check]
    """The checks that decide, in the order of the computation; the last one is `departure`'s."""
    worst_position: int
    top1_agreement: float
    """Share of positions at which both find the same token likeliest."""
    layers: dict[str, float]
    """Relative difference of the hidden states at the median position: embedding, layer 0, …, final norm."""
    first_departure: str | None
    """The first place whose limit is exceeded; None: the models are equal but for rounding."""

    def worst_check(self) -> Check:
        """The failed check that comes first, or the one nearest to its limit."""
        failed = [check for check in self.checks if not check.passed]
        return failed[0] if failed else max(self.checks, key=lambda check: check.share)


def compare(dtype: str, ours: Outputs, exact: Outputs, theirs: Outputs, token_ids: list[int]) -> Verdict:
    """The verdict on our model in a dtype.

    Departures are distances from `exact`, transformers in fp32; the reported differences are those from
    `theirs`, transformers in the same dtype.
    """
    labels = torch.tensor(token_ids[1:])[:, None]
    log_p, reference = ours.log_probs(), theirs.log_probs()
    difference = (log_p - reference).abs()
    of_labels = difference[:-1].gather(1, labels).squeeze(1)
    checks = _checks(dtype, ours, exact, theirs)
    return Verdict(
        dtype,
        positions=len(of_labels),
        max_abs_logprob_diff=of_labels.max().item(),
        mean_abs_logprob_diff=of_labels.mean().item(),
        max_abs_logprob_diff_of_vocabulary=difference.max().item(),
        departure=checks[-1].departure,
        limit=checks[-1].limit,
        checks=checks,
        worst_position=int(of_labels.argmax()),
        top1_agreement=(log_p.argmax(1) == reference.argmax(1)).float().mean().item(),
        layers={place: _distance(states, theirs.hidden[place]) for place, states in ours.hidden.items()},
        first_departure=next((check.place for check in checks if not check.passed), None),
    )


def _checks(dtype: str, ours: Outputs, exact: Outputs, theirs: Outputs) -> list[Check]:
    if dtype == "fp32":
        limits = dict.fromkeys(ours.hidden, _FP32_HIDDEN)
        logits = Check(LOGITS, _largest(ours, exact), _FP32_LOGITS * exact.logits.abs().max().item())
    else:
        limits = {
            place: _BF16_FACTOR * _distance(states, exact.hidden[place])
            for place, states in theirs.hidden.items()
        }
        logits = Check(LOGITS, _mean(ours, exact), _BF16_FACTOR * _mean(theirs, exact))
    hidden = [
        Check(place, _distance(states, exact.hidden[place]), limits[place])
        for place, states in ours.hidden.items()
    ]
    return [*hidden, logits]


def sentence(verdict: Verdict) -> str:
    """The verdict in words: the number that decided it, its limit, and the meaning of the limits."""
    check, failed = verdict.worst_check(), [check for check in verdict.checks if not check.passed]
    what = "log-probabilities" if check.place == LOGITS else f"hidden states after {check.place}"
    figures = f"{what}: {check.departure:.3e} from transformers in fp32, limit {check.limit:.3e}"
    if failed:
        more = f"; {len(failed)} of {len(verdict.checks)} limits exceeded" if len(failed) > 1 else ""
        head = f"departs first at: {check.place} ({figures}{more})"
    else:
        head = f"the same but for rounding (nearest to its limit, {figures})"
    return f"{verdict.dtype}: {head}\n  limits: {_LIMITS[verdict.dtype]}"


def _largest(ours: Outputs, other: Outputs) -> float:
    return (ours.log_probs() - other.log_probs()).abs().max().item()


def _mean(ours: Outputs, other: Outputs) -> float:
    return (ours.log_probs() - other.log_probs()).abs().mean().item()


def _distance(states: torch.Tensor, reference: torch.Tensor) -> float:
    return ((states - reference).norm(dim=1) / reference.norm(dim=1)).median().item()
