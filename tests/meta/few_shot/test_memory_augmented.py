"""The memory: what is written and read where, and that answers never see the future."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recmeta.errors import InputError
from recmeta.meta.few_shot.memory_augmented import MemoryAugmented, least_used

WAYS = 3
FEATURES = 4


def make(heads: int = 2, **sizes: int) -> MemoryAugmented:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {"hidden": 12, "slots": 6, "width": 5} | sizes
        return MemoryAugmented(nn.Identity(), features=FEATURES, ways=WAYS, heads=heads, **given)


def rows(tasks: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % WAYS
    return torch.randn(tasks, count, FEATURES, generator=draw), label.expand(tasks, -1).clone()


def test_usage_writes_and_reads_are_those_of_a_loop_over_slots_and_heads() -> None:
    model, heads, slots = make(), 2, 6
    known, label = rows(1, 7)
    memory = model.start(known)
    held = [[1e-6] * 5 for _ in range(slots)]
    usage, read = [0.0] * slots, [[0.0] * slots for _ in range(heads)]
    for step in range(7):
        before = torch.zeros(1, WAYS)
        if step:
            before[0, label[0, step - 1]] = 1.0
        with torch.no_grad():
            inputs = torch.cat([known[:, step], before, memory.found], -1)
            hidden, _ = model.controller(inputs, (memory.hidden, memory.cell))
            seen = torch.cat([hidden, known[:, step], before], -1)
            keys, contents = (
                torch.tanh(part(seen)).reshape(heads, 5).tolist() for part in (model.keys, model.contents)
            )
            gates = torch.sigmoid(model.gates(hidden))[0].tolist()
            memory, _ = model.meet(memory, known[:, step], before)
        least = sorted(range(slots), key=lambda at: (usage[at], at))[:heads]
        write = [
            [gates[head] * read[head][at] + (1 - gates[head]) * (at in least) for at in range(slots)]
            for head in range(heads)
        ]
        for at in range(slots):
            kept = [0.0] * 5 if at in least else held[at]
            held[at] = [
                kept[d] + sum(write[head][at] * contents[head][d] for head in range(heads)) for d in range(5)
            ]
        for head in range(heads):
            likeness = torch.cosine_similarity(torch.tensor(keys[head]), torch.tensor(held), dim=-1)
            read[head] = torch.softmax(model.log_sharpness.exp().detach() * likeness, 0).tolist()
        usage = [
            0.95 * usage[at] + sum(read[head][at] + write[head][at] for head in range(heads))
            for at in range(slots)
        ]
        for found, expected in ((memory.slots, held), (memory.usage, usage), (memory.read, read)):
            torch.testing.assert_close(found[0], torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_the_least_used_slots_are_the_lowest_and_the_first_of_equals() -> None:
    usage = torch.tensor([[0.3, 0.1, 0.2, 0.1], [0.0, 0.0, 0.0, 0.0]])
    assert least_used(usage, 1).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]
    assert least_used(usage, 3).tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]


def test_answers_of_an_episode_do_not_depend_on_labels_that_come_later() -> None:
    model = make()
    known, label = rows(2, 6)
    with torch.no_grad():
        answers = model._sequence(known, label, WAYS)[1]
        for step in range(6):
            other = label.clone()
            other[:, step:] = (other[:, step:] + 1) % WAYS
            changed = model._sequence(known, other, WAYS)[1]
            torch.testing.assert_close(changed[:, : step + 1], answers[:, : step + 1])
            if step < 5:
                assert not torch.allclose(changed[:, step + 1], answers[:, step + 1], atol=1e-6)


def test_a_query_row_is_met_as_the_next_row_of_the_sequence() -> None:
    model = make()
    known, label = rows(2, 6)
    with torch.no_grad():
        whole = model._sequence(known, label, WAYS)[1]
        found = model.log_probabilities(known[:, :5], label[:, :5], known[:, 5:], WAYS)
    torch.testing.assert_close(found[:, 0], whole[:, 5])


def test_another_number_of_ways_is_refused() -> None:
    known, label = rows(2, 4)
    with pytest.raises(InputError, match="expected 3 ways, as it was made for, found 4"):
        make()._sequence(known, label, 4)


def test_it_learns_to_bind_labels_that_are_new_in_each_episode() -> None:
    """A net without memory of labels answers a third rightly, as the numbers of classes are drawn anew."""
    model = make(heads=1, hidden=48, slots=8, width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)

    def episodes(tasks: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        middle = torch.randn(tasks, WAYS, FEATURES, generator=draw)
        parts: list[Tensor] = []
        for label in (
            torch.rand(tasks, WAYS, generator=draw).argsort(-1),
            torch.randint(0, WAYS, (tasks, 3), generator=draw),
        ):
            noise = 0.2 * torch.randn(*label.shape, FEATURES, generator=draw)
            parts += [middle.gather(1, label.unsqueeze(-1).expand(-1, -1, FEATURES)) + noise, label]
        return tuple(parts)

    for step in range(350):
        optimizer.zero_grad()
        model.loss(*episodes(48, step), WAYS).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    support, label, query, answer = episodes(300, 10_000)
    with torch.no_grad():
        found = model.log_probabilities(support, label, query, WAYS).argmax(-1)
    assert (found == answer).float().mean() > 0.75
