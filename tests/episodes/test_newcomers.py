"""Tasks in which a context pretends to be new: all rows of such a task look so, and rows of no other task."""

from __future__ import annotations

import torch
from episode_rows import make_rows

from recmeta.episodes.newcomers import Newcomers
from recmeta.episodes.rows import Rows
from recmeta.episodes.sampler import EpisodeSampler, MetaBatch

EMPTY = 7.0


def newcomers(rows: Rows) -> Newcomers:
    """Column 0 bears the name of context 1, column 1 of context 2; columns 3 and 4 show the own log."""
    own = torch.zeros(3, 5, dtype=torch.bool)
    own[1, 0] = own[2, 1] = True
    return Newcomers(
        own=own,
        empty=torch.full((5,), EMPTY),
        columns=torch.tensor([3, 4]),
        values=torch.stack([rows.group.float() + 0.25, rows.group.float() + 0.5], dim=1),
    )


def drawn(share: float, **more: int) -> tuple[Rows, MetaBatch]:
    rows = make_rows({1: 300, 2: 200})
    fixed = {"tasks": 8, "support": 6, "query": 5, "steps": 4, "seed": 3, **more}
    sampler = EpisodeSampler(rows, **fixed, newcomers=newcomers(rows), newcomer_share=share)
    return rows, sampler.batch(0)


def test_a_task_pretends_with_all_its_rows_in_support_and_query() -> None:
    rows, batch = drawn(0.5)
    for part in ("support", "query"):
        columns = batch[part]
        marked = columns["newcomer"]
        assert (marked == marked[:, :1]).all()
        plain = rows.dense[columns["group"]]
        assert torch.equal(columns["dense"][~marked], plain[~marked])
        own = torch.where(columns["context"] == 1, columns["dense"][..., 0], columns["dense"][..., 1])
        assert (own[marked] == EMPTY).all()
        assert torch.equal(columns["dense"][..., 3][marked], columns["group"][marked] + 0.25)
        assert torch.equal(columns["dense"][..., 2], plain[..., 2])
    assert torch.equal(batch["support"]["newcomer"][:, 0], batch["query"]["newcomer"][:, 0])
    assert 0 < int(batch["query"]["newcomer"][:, 0].sum()) < 8


def test_none_pretends_at_a_share_of_zero_and_all_at_one() -> None:
    assert not drawn(0.0)[1]["query"]["newcomer"].any()
    assert drawn(1.0)[1]["query"]["newcomer"].all()


def test_who_pretends_does_not_change_which_rows_are_drawn() -> None:
    rows = make_rows({1: 300, 2: 200})
    without = EpisodeSampler(rows, tasks=8, support=6, query=5, steps=4, seed=3).batch(0)
    batch = drawn(0.5)[1]
    for part in ("support", "query"):
        assert torch.equal(batch[part]["group"], without[part]["group"])
        assert "newcomer" not in without[part]


def test_the_rows_themselves_stay_as_they_are() -> None:
    rows = make_rows({1: 300, 2: 200})
    before = rows.dense.clone()
    made = newcomers(rows)
    EpisodeSampler(
        rows, tasks=8, support=6, query=5, steps=4, seed=3, newcomers=made, newcomer_share=1.0
    ).batch(0)
    assert torch.equal(rows.dense, before)
