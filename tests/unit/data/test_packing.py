"""Packs: whole samples, few and equal packs, and micro-batches that give the samples back."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_probsft.data.packing import StepPlan, make_microbatch, plan_step


def pack_sums(plan: StepPlan, lengths: np.ndarray) -> list[int]:
    return [int(lengths[pack].sum()) if pack else 0 for rank in plan.packs for pack in rank]


def test_invariants_hold_for_random_steps() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        capacity = int(rng.integers(8, 300))
        dp, align, multiple = (int(rng.integers(1, high)) for high in (6, 17, 4))
        lengths = rng.integers(1, capacity + 1, size=rng.integers(0, 60))
        lengths = np.minimum(lengths, rng.integers(1, capacity + 1))
        plan = plan_step(lengths, dp, capacity, align, multiple)
        samples = [s for rank in plan.packs for pack in rank for s in pack]
        assert sorted(samples) == list(range(len(lengths))), "every sample once, whole"
        assert len(plan.packs) == dp
        assert len({len(rank) for rank in plan.packs}) == 1
        assert len(plan.packs[0]) % multiple == 0
        assert len(plan.packs[0]) >= 1
        sums = pack_sums(plan, lengths)
        assert max(sums) <= capacity
        assert plan.pack_length == max(1, -(-max(sums) // align)) * align
        assert all(pack == sorted(pack) for rank in plan.packs for pack in rank)
        assert plan_step(lengths.copy(), dp, capacity, align, multiple) == plan, "deterministic"


def fewest_packs(lengths: list[int], capacity: int) -> int:
    """By trying all: samples one by one into every pack with room."""

    def fits(left: tuple[int, ...], room: tuple[int, ...]) -> bool:
        if not left:
            return True
        options = {r for r in room if r >= left[0]}
        return any(
            fits(left[1:], tuple(sorted([*room[: room.index(r)], r - left[0], *room[room.index(r) + 1 :]])))
            for r in options
        )

    longest_first = tuple(sorted(lengths, reverse=True))
    return next(n for n in itertools.count(1) if fits(longest_first, (capacity,) * n))


def test_as_few_packs_as_exhaustive_search_needs() -> None:
    rng = np.random.default_rng(1)
    more = 0
    for _ in range(200):
        lengths = rng.integers(1, 30, size=rng.integers(1, 9))
        found = len(plan_step(lengths, 1, 30).packs[0])
        best = fewest_packs(lengths.tolist(), 30)
        assert best <= found <= best + 1
        more += found - best
    assert more <= 4, "a heuristic, but seldom wrong"


def test_few_samples_leave_packs_empty() -> None:
    plan = plan_step(np.array([5, 3]), 3, 10, align=4, microbatch_multiple=2)
    assert [len(rank) for rank in plan.packs] == [2, 2, 2]
    assert sorted(pack_sums(plan, np.array([5, 3]))) == [0, 0, 0, 0, 3, 5]
    assert plan.pack_length == 8


def test_packs_are_as_short_as_they_can_be() -> None:
    # Capacity 100 would allow 100 + 20; two packs of 60 need as many micro-batches and less padding.
    plan = plan_step(np.array([30, 30, 30, 30]), 1, 100)
    assert (len(plan.packs[0]), plan.pack_length) == (2, 60)


def attention_costs(plan: StepPlan, lengths: np.ndarray) -> np.ndarray:
    """`[rank, micro-batch]`: Σ L² over a pack's samples and its padding."""

    def of_pack(pack: list[int]) -> int:
        used = lengths[pack] if pack else np.zeros(0, np.int64)
        return int((used**2).sum() + (plan.pack_length - used.sum()) ** 2)

    return np.array([[of_pack(pack) for pack in rank] for rank in plan.packs])


def test_attention_is_balanced_over_ranks_and_micro_batches() -> None:
    """All packs are of one length, so nothing else tells their costs apart."""
    # Two packs hold one sample each, two hold eight: a rank gets one of either.
    plan = plan_step(np.array([80, 80, *[10] * 16]), 2, 80)
    assert attention_costs(plan, np.array([80, 80, *[10] * 16])).tolist() == [[6400, 800]] * 2

    lengths = np.random.default_rng(2).lognormal(np.log(350), 0.6, 256).clip(20, 2048).astype(np.int64)
    costs = attention_costs(plan_step(lengths, 4, 2048), lengths)
    assert costs.max() > 2 * costs.mean(), "packs of long samples and packs of short ones"
    assert costs.sum(1).max() < 1.05 * costs.sum(1).mean()
    # Ranks that wait for each other after every micro-batch, as those that share experts do, wait little.
    assert costs.max(0).sum() < 1.25 * costs.mean(0).sum()


@pytest.mark.parametrize("dp", [1, 2, 8])
@pytest.mark.parametrize("median", [60, 200, 350])
def test_efficiency_and_speed_at_the_usual_size(dp: int, median: int) -> None:
    """On average at least 97 % of the positions of 256-sample steps, capacity 2048, hold a token."""
    rng = np.random.default_rng(3)
    efficiency, seconds = [], []
    for _ in range(8):
        lengths = rng.lognormal(np.log(median), 0.6, 256).clip(16, 2048).astype(np.int64)
        started = time.perf_counter()
        plan = plan_step(lengths, dp, 2048, align=8)
        seconds.append(time.perf_counter() - started)
        efficiency.append(lengths.sum() / (sum(map(len, plan.packs)) * plan.pack_length))
    assert np.mean(efficiency) >= 0.97
    assert min(seconds) < 0.005


@pytest.mark.parametrize(
    "arguments", [([5], 0, 9), ([5], 1, 9, 0), ([5], 1, 9, 1, 0), ([0], 1, 9), ([10], 1, 9)]
)
def test_impossible_steps(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"not positive|10 positions does not fit a pack of 9"):
        plan_step(np.array(arguments[0]), *arguments[1:])


def store_of(samples: list[tuple[list[int], list[bool]]]) -> Any:
    arrays = [(np.array(tokens, np.int32), np.array(trained)) for tokens, trained in samples]
    return SimpleNamespace(sample=lambda index: arrays[index], weights=None)


EOS = 2  # also the padding and the end of the prompts: it must not matter
SAMPLES = [
    ([7, EOS, 8, 9, EOS], [False, False, True, True, True]),
    ([EOS, EOS], [False, True]),
    ([4, 5, EOS, 4, 6, EOS], [False, True, True, False, True, True]),
    ([3, 3, 3], [True, True, True]),
]


def test_a_micro_batch_by_hand() -> None:
    batch = make_microbatch(store_of(SAMPLES), [2, 0], 12)
    assert {name: np.asarray(value).tolist() for name, value in batch.items()} == {
        "tokens": [4, 5, EOS, 4, 6, 7, EOS, 8, 9, 0, 0, 0],
        "labels": [5, EOS, -100, 6, EOS, -100, 8, 9, EOS, -100, -100, -100],
        "position_ids": [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2],
        "cu_seqlens": [0, 5, 9, 12],
        "max_seqlen": 5,
    }
    dtypes = {name: value.dtype.name for name, value in batch.items() if isinstance(value, np.ndarray)}
    assert dtypes == {
        "tokens": "int64", "labels": "int64", "position_ids": "int64", "cu_seqlens": "int32",
    }  # fmt: skip
    assert isinstance(batch["max_seqlen"], int)


def test_full_and_empty_packs() -> None:
    full: Any = make_microbatch(store_of(SAMPLES), [0, 1], 5)
    assert full["cu_seqlens"].tolist() == [0, 4, 5]
    empty: Any = make_microbatch(store_of(SAMPLES), [], 4)
    assert empty["tokens"].tolist() == [0] * 4
    assert empty["labels"].tolist() == [-100] * 4
    assert empty["position_ids"].tolist() == [0, 1, 2, 3]
    assert (empty["cu_seqlens"].tolist(), empty["max_seqlen"]) == ([0, 4], 4)
    with pytest.raises(ValueError, match="do not fit a pack of 8 positions"):
        make_microbatch(store_of(SAMPLES), [0, 2], 8)


def test_a_planned_step_gives_every_sample_and_label_back() -> None:
    rng = np.random.default_rng(4)
    samples = []
    for _ in range(50):
        n = int(rng.integers(2, 40))
        first = int(rng.integers(0, n))
        samples.append((rng.integers(0, 9, n).tolist(), [False] * first + [True] * (n - first)))
    lengths = np.array([len(tokens) - 1 for tokens, _ in samples])
    plan = plan_step(lengths, 3, 64, align=8)
    seen = []
    for pack in itertools.chain.from_iterable(plan.packs):
        batch: Any = make_microbatch(store_of(samples), pack, plan.pack_length)
        cuts = batch["cu_seqlens"].tolist()
        assert (cuts[0], cuts[-1]) == (0, plan.pack_length)
        assert batch["max_seqlen"] == max(b - a for a, b in itertools.pairwise(cuts))
        for sample, start, end in zip(pack, cuts, cuts[1:], strict=False):
            tokens, trained = samples[sample]
            assert batch["tokens"][start:end].tolist() == tokens[:-1]
            assert batch["position_ids"][start:end].tolist() == list(range(len(tokens) - 1))
            wanted = [t if flag else -100 for t, flag in zip(tokens[1:], trained[1:], strict=True)]
            assert batch["labels"][start:end].tolist() == wanted
            seen.append(sample)
        assert (batch["labels"][cuts[len(pack)] :] == -100).all()
    assert sorted(seen) == list(range(50))
