"""LengthBucketSampler: every example once, limits held, ranks alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttx.data import LengthBucketSampler

LENGTHS = [5, 3, 9, 9, 1, 4, 7, 2, 9, 6, 5, 5, 8, 3, 3, 1, 2, 7, 9, 4, 6, 1, 8]


def limits(st: Any) -> Any:
    return st.one_of(
        st.tuples(st.integers(1, 9), st.none()),
        st.tuples(st.none(), st.integers(20, 90)),
        st.tuples(st.integers(1, 9), st.integers(20, 90)),
    )


def by_rank(ranks: int, *args: Any, epoch: int = 0, **options: Any) -> list[list[list[int]]]:
    samplers = [LengthBucketSampler(*args, **options, num_replicas=ranks, rank=rank) for rank in range(ranks)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    found = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(batches) for batches in found]
    return found


def test_an_epoch() -> None:
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=150, deadline=None)
    @hypothesis.given(
        lengths=st.lists(st.integers(1, 20), min_size=1, max_size=120),
        limit=limits(st),
        ranks=st.integers(1, 5),
        shuffle=st.booleans(),
        drop_last=st.booleans(),
        epoch=st.integers(0, 3),
    )
    def holds(
        lengths: list[int], limit: tuple[int | None, int | None], ranks: int, shuffle: bool, drop_last: bool, epoch: int
    ) -> None:
        most, tokens = limit
        options: dict[str, Any] = dict(batch_size=most, max_tokens=tokens, shuffle=shuffle, drop_last=drop_last)
        try:
            found = by_rank(ranks, lengths, epoch=epoch, **options)
        except ValueError as error:
            assert drop_last and str(error).startswith("drop_last:")
            return
        assert len({len(batches) for batches in found}) == 1
        batches = [batch for rank in found for batch in rank]
        assert all(batches)
        if most is not None:
            assert max(map(len, batches)) <= most
        if tokens is not None:
            assert all(len(batch) * max(lengths[i] for i in batch) <= tokens for batch in batches)
        seen = sorted(i for batch in batches for i in batch)
        if drop_last:
            assert len(seen) == len(set(seen)) and set(seen) <= set(range(len(lengths)))
            assert len(lengths) - len(seen) <= max(map(len, batches)) * ranks or tokens is not None
        elif max(map(len, batches)) > 1 or len(batches) == len(lengths):
            assert seen == list(range(len(lengths)))
        else:  # single examples, which no batch can be halved into
            assert set(seen) == set(range(len(lengths))) and len(seen) < len(lengths) + ranks

    holds()


def test_every_epoch_has_as_many_batches() -> None:
    """Trainer takes the number of steps of all epochs from the first."""
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @hypothesis.settings(max_examples=50, deadline=None)
    @hypothesis.given(
        lengths=st.lists(st.integers(1, 20), min_size=1, max_size=80),
        limit=limits(st),
        ranks=st.integers(1, 4),
        drop_last=st.booleans(),
        seed=st.integers(0, 9),
    )
    def holds(lengths: list[int], limit: tuple[int | None, int | None], ranks: int, drop_last: bool, seed: int) -> None:
        try:
            sampler = LengthBucketSampler(lengths, *limit, seed=seed, drop_last=drop_last, num_replicas=ranks)
        except ValueError:
            assert drop_last
            return
        want = len(sampler)
        for epoch in range(1, 5):
            sampler.set_epoch(epoch)
            assert len(sampler) == len(list(sampler)) == want

    holds()


@pytest.mark.parametrize(
    "limit", [{"batch_size": 8}, {"max_tokens": 700}, {"batch_size": 8, "max_tokens": 700}], ids=str
)
def test_many_examples_make_as_many_batches_in_every_epoch(limit: dict[str, int]) -> None:
    lengths = torch.randint(1, 400, (2000,), generator=torch.Generator().manual_seed(2)).tolist()
    sampler = LengthBucketSampler(lengths, **limit)
    counts = set()
    for epoch in range(4):
        sampler.set_epoch(epoch)
        counts.add(len(sampler))
    assert len(counts) == 1


@pytest.mark.parametrize("limit", [{"batch_size": 4}, {"max_tokens": 20}], ids=str)
def test_seed_and_epoch_decide_on_the_order(limit: dict[str, int]) -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = LengthBucketSampler(LENGTHS, **limit, seed=seed)
        torch.manual_seed(epoch * 31)  # the global generator has no say
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0) and order(0, 3) == order(0, 3)
    assert len({str(order(0, epoch)) for epoch in range(4)}) == 4
    assert order(1, 0) != order(0, 0)


def test_without_set_epoch_the_order_stays_and_draws_nothing() -> None:
    sampler = LengthBucketSampler(LENGTHS, batch_size=4)
    state = torch.get_rng_state()
    assert list(sampler) == list(sampler)
    assert torch.equal(state, torch.get_rng_state())


def test_unshuffled_the_longest_come_first_in_the_order_given() -> None:
    sampler = LengthBucketSampler([2, 9, 2, 5, 9], batch_size=2, shuffle=False)
    want = [[1, 4], [3, 0], [2]]
    assert list(sampler) == want
    sampler.set_epoch(5)
    assert list(sampler) == want
    assert list(LengthBucketSampler([2, 9, 2, 5, 9], max_tokens=10, shuffle=False)) == [[1], [4], [3, 0], [2]]


@pytest.mark.parametrize("limit", [{"batch_size": 16}, {"max_tokens": 2000}], ids=str)
@pytest.mark.parametrize("ranks", [1, 4])
def test_lengths_in_a_batch_are_similar_and_the_largest_step_is_first(limit: dict[str, int], ranks: int) -> None:
    lengths = torch.randint(4, 400, (3000,), generator=torch.Generator().manual_seed(2)).tolist()
    steps = list(zip(*by_rank(ranks, lengths, **limit)))
    padded = [[len(batch) * max(lengths[i] for i in batch) for batch in step] for step in steps]
    assert sum(map(sum, padded)) < 1.08 * sum(lengths)  # a random batch of 16 pads to almost twice its tokens
    assert max(padded[0]) == max(map(max, padded))
    assert [max(step) for step in padded] != sorted((max(step) for step in padded), reverse=True)
    # no rank waits for another: the batches of a step differ by little, but for one that is not full
    assert sum(max(step) > 1.5 * min(step) for step in padded) <= 4


def test_every_example_meets_others() -> None:
    """Batches by size are drawn anew each epoch, and not only put into another order."""
    lengths = list(range(1, 1001))
    sampler = LengthBucketSampler(lengths, batch_size=8)
    neighbours = set()
    for epoch in range(6):
        sampler.set_epoch(epoch)
        neighbours |= set(next(batch for batch in sampler if 500 in batch))
    assert len(neighbours) > 20


def test_batches_are_halved_so_that_each_rank_has_as_many() -> None:
    found = by_rank(2, [4] * 12, batch_size=4, shuffle=False)
    assert sorted(len(batch) for rank in found for batch in rank) == [2, 2, 4, 4]
    assert sorted(i for rank in found for batch in rank for i in batch) == list(range(12))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_examples_repeat(count: int) -> None:
    found = by_rank(4, [3] * count, batch_size=1)
    assert [len(rank) for rank in found] == [-(-count // 4)] * 4
    assert {i for rank in found for batch in rank for i in batch} == set(range(count))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [({"batch_size": 4}, [4, 4]), ({"max_tokens": 11, "num_replicas": 4}, None)],
    ids=["by size", "by tokens"],
)
def test_drop_last_drops_other_examples_each_epoch(options: dict[str, int], sizes: list[int] | None) -> None:
    sampler = LengthBucketSampler(list(range(1, 11)), **options, drop_last=True)
    dropped = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        if sizes is not None:
            assert [len(batch) for batch in batches] == sizes
        assert len(batches) % options.get("num_replicas", 1) == 0
        dropped |= set(range(10)) - {i for batch in batches for i in batch}
    assert dropped == set(range(10))


def test_without_a_rank_come_the_batches_of_all_in_turn() -> None:
    for epoch in range(3):
        found = by_rank(3, LENGTHS, max_tokens=30, epoch=epoch)
        sampler = LengthBucketSampler(LENGTHS, max_tokens=30, num_replicas=3)
        sampler.set_epoch(epoch)
        assert list(sampler) == [batch for step in zip(*found) for batch in step]
        assert len(sampler) == 3 * len(found[0])


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("lengths", [LENGTHS, [4] * 9], ids=["ragged", "a short batch ends a step"])
@pytest.mark.parametrize("limit", [{"batch_size": 4}, {"max_tokens": 20}], ids=str)
def test_accelerate_deals_out_every_batch(limit: dict[str, int], lengths: list[int], even_batches: bool) -> None:
    loader = pytest.importorskip("accelerate.data_loader", reason="accelerate is not installed")
    sampler = LengthBucketSampler(lengths, **limit, num_replicas=3)
    shards = [loader.BatchSamplerShard(sampler, 3, rank, even_batches=even_batches) for rank in range(3)]
    found = [list(shard) for shard in shards]
    assert found == by_rank(3, lengths, **limit)
    assert [len(shard) for shard in shards] == [len(batches) for batches in found]


@pytest.mark.parametrize(
    "of", [tuple, torch.tensor, lambda x: torch.tensor(x).numpy(), iter], ids=["tuple", "tensor", "array", "iterator"]
)
def test_lengths_of_many_types(of: Any) -> None:
    assert list(LengthBucketSampler(of(LENGTHS), batch_size=4)) == list(LengthBucketSampler(LENGTHS, batch_size=4))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(lengths=[]), "lengths: got none"),
        (dict(lengths=[3, 0]), "lengths: got 0 for example 1"),
        (dict(lengths=[3, 2.5]), "lengths: got 2.5 for example 1"),
        (dict(lengths=[True]), "lengths: got True for example 0"),
        (dict(lengths=torch.tensor([1.0])), "lengths: got 1.0 for example 0"),
        (dict(lengths=[[1, 2]]), r"lengths: got \[1, 2\] for example 0"),
        (dict(lengths="123"), "lengths: got str"),
        (dict(lengths=7), "lengths: got int"),
        (dict(lengths=torch.tensor(7)), "lengths: got Tensor"),
        (dict(lengths=[3, 11], max_tokens=10), "lengths: got 11 for example 1; .* max_tokens = 10"),
        (dict(batch_size=None), "batch_size, max_tokens: got None for both"),
        (dict(batch_size=0), "batch_size: got 0"),
        (dict(batch_size=True), "batch_size: got True"),
        (dict(max_tokens=10.0), "max_tokens: got 10.0"),
        (dict(shuffle=1), "shuffle: got 1"),
        (dict(drop_last=None), "drop_last: got None"),
        (dict(seed=-1), "seed: got -1"),
        (dict(seed=2**63), f"seed: got {2**63}"),
        (dict(lengths=[1, 2**63]), f"lengths: got {2**63} for example 1"),
        (dict(lengths=torch.ones(3, device="meta")), "lengths: got a tensor on meta"),
        (dict(num_replicas=0), "num_replicas: got 0"),
        (dict(rank=2, num_replicas=2), "rank: got 2; .* = 1"),
        (dict(batch_size=4, drop_last=True), "drop_last: got True, which leaves nothing of 3 examples for 1 ranks"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}"):
        LengthBucketSampler(**(dict(lengths=[1, 2, 3], batch_size=2) | arguments))


@pytest.mark.parametrize("epoch", [-1, 1.0, None, 2**63])
def test_a_wrong_epoch_is_named(epoch: Any) -> None:
    with pytest.raises(ValueError, match="^epoch: got"):
        LengthBucketSampler([1], batch_size=1).set_epoch(epoch)
