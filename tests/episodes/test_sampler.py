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


def test_a_narrowed_task_holds_a_subset_of_its_contexts_labels_in_support_and_query() -> None:
    rows = make_rows({1: 4000, 2: 4000})
    labels = rows.categories[:, 0]
    sampler = EpisodeSampler(rows, tasks=8, support=32, query=64, steps=20, seed=0, labels=labels)
    subsets = []
    for batch in sampler:
        first = {part: batch[part]["categories"][:, :, 0] for part in ("support", "query")}
        assert bool((batch["support"]["time"].amax(1) < batch["query"]["time"].amin(1)).all())
        subsets += map(frozenset, torch.cat([first["support"], first["query"]], dim=1).tolist())
    counts = [len(subset) for subset in subsets]
    assert len(set(subsets)) > 30
    assert 2.5 < sum(counts) / len(counts) < 4.0  # half of six labels, and one
    assert min(counts) == 1


def test_narrowed_tasks_depend_on_seed_and_number_only() -> None:
    rows = make_rows({1: 400, 2: 300})

    def fresh(**options: object) -> EpisodeSampler:
        given = {"tasks": 4, "support": 4, "query": 4, "steps": 5, "seed": 3} | options
        return EpisodeSampler(rows, **given)  # type: ignore[arg-type]

    labels = rows.item % 7
    assert same(fresh(labels=labels).batch(3), fresh(labels=labels).batch(3))
    assert not same(fresh(labels=labels).batch(3), fresh().batch(3))
    with pytest.raises(InputError, match="expected labels of shape"):
        fresh(labels=labels[:5])


def test_a_subset_with_too_few_rows_gives_way_to_the_whole_context() -> None:
    rows = make_rows({1: 60})
    labels = torch.arange(60)  # a label a row: half of them are never enough for 50 rows
    sampler = EpisodeSampler(rows, tasks=4, support=0, query=50, steps=5, seed=0, labels=labels)
    for batch in sampler:
        for group in batch["query"]["group"]:
            assert len(set(group.tolist())) == 50


def test_every_context_is_in_every_batch_where_that_is_asked_for() -> None:
    rows = make_rows({1: 5000, 2: 50, 3: 10})
    sampler = EpisodeSampler(rows, tasks=5, support=0, query=2, steps=20, seed=0, every_context=True)
    others = set()
    for batch in sampler:
        contexts = batch["query"]["context"][:, 0].tolist()
        assert contexts[:3] == [1, 2, 3]
        others |= set(contexts[3:])
    assert len(others) > 1
    with pytest.raises(InputError, match="expected a task for each of 3 contexts, found tasks=2"):
        EpisodeSampler(rows, tasks=2, support=0, query=2, steps=1, seed=0, every_context=True)


def test_one_of_each_is_the_same_at_every_call_and_takes_the_largest() -> None:
    rows = make_rows({1: 100, 2: 5, 3: 50})
    sampler = EpisodeSampler(rows, tasks=2, support=3, query=4, steps=1, seed=0)
    first = sampler.one_of_each(20, most=2)
    assert first["query"]["context"].tolist() == [[1] * 20, [3] * 20]
    assert first["support"]["context"].shape == (2, 3)
    sampler.batch(0)
    assert same(first, sampler.one_of_each(20, most=2))
    assert sampler.one_of_each(1, most=9)["query"]["context"].flatten().tolist() == [1, 2, 3]
