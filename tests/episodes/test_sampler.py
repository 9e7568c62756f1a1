"""Episodes look forward in time, meet every context, and go on where they stopped."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from episode_rows import make_rows

from recmeta.episodes.sampler import EpisodeSampler, MetaBatch
from recmeta.errors import InputError

DAY = timedelta(days=1)


def same(left: MetaBatch, right: MetaBatch) -> bool:
    return all(torch.equal(left[part][name], right[part][name]) for part in left for name in left[part])


def test_support_is_strictly_before_query_and_of_the_same_context() -> None:
    rows = make_rows({1: 300, 2: 50, 3: 2}, span=10**8)  # crowded: many rows share an instant's second
    sampler = EpisodeSampler(rows, tasks=8, support=6, query=5, steps=40, seed=1, windows=(DAY, 30 * DAY))
    for batch in sampler:
        support, query = batch["support"], batch["query"]
        assert support["dense"].shape == (8, 6, 5)
        assert query["history"].shape == (8, 5, 7)
        assert bool((support["time"].amax(1) < query["time"].amin(1)).all())
        contexts = torch.cat([support["context"], query["context"]], dim=1)
        assert bool((contexts == contexts[:, :1]).all())


def test_rows_lie_within_a_window_of_the_border_where_there_are_any() -> None:
    rows = make_rows({1: 5000}, span=100 * 86_400_000_000)
    sampler = EpisodeSampler(rows, tasks=4, support=8, query=8, steps=10, seed=0, windows=(2 * DAY,))
    for batch in sampler:
        reach = batch["query"]["time"].amax(1) - batch["support"]["time"].amin(1)
        assert int(reach.max()) <= 4 * 86_400_000_000


def test_a_context_a_thousand_times_larger_does_not_drown_a_small_one() -> None:
    rows = make_rows({1: 10_000, 2: 10})
    sampler = EpisodeSampler(rows, tasks=16, support=1, query=1, steps=200, seed=0)
    seen = torch.cat([batch["query"]["context"].flatten() for batch in sampler])
    share = float((seen == 2).float().mean())
    assert 0.02 < share < 0.045  # 1 / (1 + sqrt(1000)) = .031


def test_contexts_with_one_row_or_one_instant_are_left_out_where_support_is_needed() -> None:
    rows = make_rows({1: 1, 2: 40})
    seen = {
        int(value)
        for batch in EpisodeSampler(rows, tasks=8, support=2, query=2, steps=20, seed=0)
        for value in batch["query"]["context"].flatten()
    }
    assert seen == {2}
    without = EpisodeSampler(rows, tasks=64, support=0, query=3, steps=20, seed=0)
    assert {int(v) for batch in without for v in batch["query"]["context"].flatten()} == {1, 2}


@pytest.mark.parametrize("sizes", [{}, {1: 1}])
def test_rows_that_make_no_episode_are_refused(sizes: dict[int, int]) -> None:
    with pytest.raises(InputError, match="two rows at different instants"):
        EpisodeSampler(make_rows(sizes), tasks=1, support=1, query=1, steps=1, seed=0)


def test_a_mask_narrows_the_task() -> None:
    rows = make_rows({1: 100, 2: 100})
    mask = rows.user < 10
    sampler = EpisodeSampler(rows, tasks=4, support=3, query=3, steps=10, seed=0, mask=mask)
    for batch in sampler:
        assert bool((batch["support"]["user"] < 10).all())
        assert bool((batch["query"]["user"] < 10).all())
    with pytest.raises(InputError, match="expected a mask of shape"):
        EpisodeSampler(rows, tasks=4, support=3, query=3, steps=10, seed=0, mask=mask[:5])


def test_a_sampler_that_was_stopped_in_mid_epoch_goes_on_bit_by_bit() -> None:
    rows = make_rows({1: 200, 2: 30})

    def fresh() -> EpisodeSampler:
        return EpisodeSampler(rows, tasks=3, support=4, query=4, steps=10, seed=5)

    straight = fresh()
    whole = [*straight, *straight]  # two epochs
    assert len(whole) == 20
    assert not same(whole[0], whole[10])
    stopped = fresh()
    iterator = iter(stopped)
    for _ in range(7):
        next(iterator)
    resumed = fresh()
    resumed.load_state_dict(stopped.state_dict())
    rest = [*resumed, *resumed]
    assert len(rest) == 13
    assert all(same(left, right) for left, right in zip(whole[7:], rest, strict=True))


def test_another_seed_draws_other_episodes() -> None:
    rows = make_rows({1: 200})
    first, second = (
        EpisodeSampler(rows, tasks=3, support=4, query=4, steps=1, seed=seed).batch(0) for seed in (0, 1)
    )
    assert not same(first, second)
