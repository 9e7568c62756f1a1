"""Fit a `TwoTowers` student to what serves, whatever that is: it sees the teacher's logits and no label.

Lists are drawn in rounds. The first round's items are drawn without regard to the student; later ones hold
what the student thinks best by then, because that is where retrieval errs (Xiong et al. 2021 choose
negatives so). The same lists give the same weights. This module must never know where lists come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recmeta.models.shared import SharedModel
from recmeta.models.two_towers import TowerShape, TwoTowers, distillation_loss
from recmeta.settings import RetrievalSettings


@dataclass(frozen=True)
class Lists:
    """B users of one context, all asked about the same M items as of one instant."""

    user_dense: Tensor
    """float32 [B, Fu]."""
    user: Tensor
    """int64 [B]."""
    history: Tensor
    """int64 [B, H]."""
    context: int
    """From 1 on."""
    item_dense: Tensor
    """float32 [M, Fi]."""
    item: Tensor
    """int64 [M]."""
    categories: Tensor
    """int64 [M, K]."""
    teacher: Tensor
    """float32 [B, M], logits as they serve."""


Draw = Callable[[TwoTowers | None], Sequence[Lists]]
"""Gives the lists of a round; None: there is no student yet, in the first."""


def distil(
    draw: Draw,
    like: SharedModel,
    contexts: int,
    settings: RetrievalSettings,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> TwoTowers:
    """Return towers fitted to the lists that ``draw`` gives, in evaluation mode.

    Args:
        draw: see `Draw`; at least one list a round.
        like: whose tables are taken over.
        contexts: how many are known.
        settings: sizes and rates.
        seed: of the weights and of the order of lists.
        progress: told ('towers', step, steps).
    """
    torch.manual_seed(seed)
    lists = list(draw(None))
    shape = TowerShape(
        item_features=lists[0].item_dense.shape[1],
        user_features=lists[0].user_dense.shape[1],
        contexts=contexts + 1,
        vector_size=settings.vector_size,
        hidden=settings.hidden,
    )
    towers = TwoTowers(shape, like)
    towers.item_dense.learn(torch.cat([one.item_dense for one in lists]))
    towers.user_dense.learn(torch.cat([one.user_dense for one in lists]))
    optimizer = torch.optim.AdamW(
        towers.parameters(), lr=settings.rate, weight_decay=settings.weight_decay, foreach=False
    )
    steps = settings.rounds * settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    for number in range(settings.rounds):
        if number:
            with torch.no_grad():
                lists += draw(towers.eval())
        towers.train()
        for step in range(settings.steps):
            if progress is not None and step % 50 == 0:
                progress("towers", number * settings.steps + step, steps)
            chosen = torch.randint(len(lists), (settings.lists_per_step,)).tolist()
            optimizer.zero_grad(set_to_none=True)
            loss = sum(
                (_loss(towers, lists[place], settings) for place in chosen), start=torch.zeros(())
            ) / len(chosen)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    return towers.eval()


def _loss(towers: TwoTowers, asked: Lists, settings: RetrievalSettings) -> Tensor:
    """The loss on one list, with some ids hidden: who and what is unknown has to be found as well."""
    share, users = settings.unknown_share, len(asked.user)
    context = torch.full((users,), asked.context)
    queries = towers.queries(
        asked.user_dense, _hidden(asked.user, share), asked.history, _hidden(context, share)
    )
    vectors = towers.item_vectors(asked.item_dense, _hidden(asked.item, share), asked.categories)
    return distillation_loss(queries @ vectors.T, asked.teacher, settings.centred)


def _hidden(index: Tensor, share: float) -> Tensor:
    """Some of the ids, [n], each unknown with probability ``share``."""
    return torch.where(torch.rand(index.shape) < share, 0, index)
