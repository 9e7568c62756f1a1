"""Few-shot classifiers: what all must do, and each against its formula written out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from recmeta.errors import InputError
from recmeta.meta.few_shot.interface import FewShotClassifier
from recmeta.meta.few_shot.logistic import LogisticClassifier
from recmeta.meta.few_shot.matching import Matching
from recmeta.meta.few_shot.memory_augmented import MemoryAugmented
from recmeta.meta.few_shot.prototypical import Prototypical
from recmeta.meta.few_shot.ridge import RidgeClassifier
from recmeta.meta.few_shot.siamese import Siamese

FEATURES = 6
WAYS = 4

Episodes = tuple[Tensor, Tensor, Tensor, Tensor]


def embedding(inputs: int = 10) -> nn.Module:
    return nn.Linear(inputs, FEATURES)


MAKERS: dict[str, Callable[[nn.Module], FewShotClassifier]] = {
    "prototypical": Prototypical,
    "matching": lambda net: Matching(net, sharpness=5.0),
    "siamese": lambda net: Siamese(net, features=FEATURES),
    "ridge": RidgeClassifier,
    "logistic": LogisticClassifier,
    "memory": lambda net: MemoryAugmented(net, features=FEATURES, ways=WAYS, hidden=16, slots=8, width=8),
}


def make(name: str, seed: int = 0) -> FewShotClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MAKERS[name](embedding())


def clusters(tasks: int, shots: int, *, seed: int = 0, queries: int = 3, useful: int = 4) -> Episodes:
    """Classes differ in the first ``useful`` of 10 numbers; the others are louder noise."""
    draw = torch.Generator().manual_seed(seed)
    middle = torch.zeros(tasks, WAYS, 1, 10)
    middle[..., :useful] = 2.0 * torch.randn(tasks, WAYS, 1, useful, generator=draw)
    noise = torch.full((10,), 3.0)
    noise[:useful] = 0.4
    rows = middle + noise * torch.randn(tasks, WAYS, shots + queries, 10, generator=draw)
    label = torch.arange(WAYS)
    parts: list[Tensor] = []
    for part in (rows[:, :, :shots], rows[:, :, shots:]):
        classes = label.repeat_interleave(part.shape[2]).expand(tasks, -1)
        order = torch.rand(classes.shape, generator=draw).argsort(-1)
        parts += [
            part.flatten(1, 2).gather(1, order.unsqueeze(-1).expand(-1, -1, 10)),
            classes.gather(1, order),
        ]
    return tuple(parts)


def accuracy(model: FewShotClassifier, shots: int) -> float:
    support, label, query, answer = clusters(300, shots, seed=77)
    with torch.no_grad():
        found = model.log_probabilities(support, label, query, WAYS).argmax(-1)
    return (found == answer).float().mean().item()


@pytest.mark.parametrize("name", MAKERS)
def test_answers_are_probabilities_and_each_episode_and_query_row_stands_for_itself(name: str) -> None:
    model = make(name)
    support, label, query, _ = clusters(3, 2)
    with torch.no_grad():
        found = model.log_probabilities(support, label, query, WAYS)
        torch.testing.assert_close(found.exp().sum(-1), torch.ones(found.shape[:2]))
        for task in range(3):
            one = (part[task : task + 1] for part in (support, label, query[:, 4:6]))
            alone = model.log_probabilities(*one, WAYS)
            torch.testing.assert_close(alone[0], found[task, 4:6], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "memory"])
def test_neither_the_order_of_rows_nor_the_numbers_of_classes_matter(name: str) -> None:
    model = make(name)
    support, label, query, _ = clusters(3, 2)
    turn = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        found = model.log_probabilities(support, label, query, WAYS)
        turned = model.log_probabilities(support.flip(1), turn[label].flip(1), query, WAYS)
    torch.testing.assert_close(turned[..., turn], found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "memory"])
def test_training_over_episodes_learns_which_differences_count(name: str) -> None:
    model = make(name, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = accuracy(model, shots=1)
    for step in range(150):
        optimizer.zero_grad()
        model.loss(*clusters(16, 1 + step % 2, seed=step), WAYS).backward()
        optimizer.step()
    assert before < 0.55
    assert accuracy(model, shots=1) > 0.75
    assert accuracy(model, shots=4) > 0.85


@pytest.mark.parametrize("name", MAKERS)
def test_every_parameter_learns(name: str) -> None:
    model = make(name)
    model.loss(*clusters(2, 2), WAYS).backward()
    for part, value in model.named_parameters():
        assert value.grad is not None and value.grad.isfinite().all(), part
    assert model.embedding.weight.grad.abs().max() > 0


def test_labels_of_another_shape_or_range_or_a_class_without_rows_are_refused() -> None:
    model = make("prototypical")
    support, label, query, _ = clusters(2, 2)
    for wrong, text in (
        (label[:, 1:], r"expected \(2, 8\) as in support, found \(2, 7\)"),
        (label + 1, r"expected each of 0 to 3 in every task and nothing else, found \[1, 2, 3, 4\]"),
        (label.clamp(max=2), r"found \[0, 1, 2\]"),
        (torch.stack([label[0], torch.zeros_like(label[1])]), r"in every task"),
    ):
        with pytest.raises(InputError, match=text):
            model.log_probabilities(support, wrong, query, WAYS)


def test_prototypical_answers_by_the_distance_to_the_mean_of_each_class() -> None:
    model = make("prototypical")
    support, label, query, _ = clusters(2, 3)
    found = model.log_probabilities(support, label, query, WAYS)
    for task in range(2):
        features = model.embedding(support[task])
        means = torch.stack([features[label[task] == way].mean(0) for way in range(WAYS)])
        distance = torch.cdist(model.embedding(query[task]), means).square()
        torch.testing.assert_close(found[task], torch.log_softmax(-distance, -1), atol=1e-3, rtol=1e-4)


def test_matching_adds_up_the_attention_on_each_class() -> None:
    model = make("matching")
    support, label, query, _ = clusters(2, 3)
    found = model.log_probabilities(support, label, query, WAYS).exp()
    for task in range(2):
        for row in range(query.shape[1]):
            asked = model.embedding(query[task, row])
            cosine = [functional.cosine_similarity(asked, model.embedding(x), dim=0) for x in support[task]]
            attention = torch.softmax(5.0 * torch.stack(cosine), 0)
            for way in range(WAYS):
                expected = attention[label[task] == way].sum()
                torch.testing.assert_close(found[task, row, way], expected, atol=1e-5, rtol=1e-4)


def test_the_siamese_net_does_not_care_which_row_stands_left_and_follows_its_formula() -> None:
    model = make("siamese")
    assert isinstance(model, Siamese)
    left, right = torch.randn(2, 7, FEATURES)
    with torch.no_grad():
        model.weight.copy_(torch.randn(FEATURES))
    torch.testing.assert_close(model.verify(left, right), model.verify(right, left))
    expected = (
        sum(model.weight[at] * (left[0, at] - right[0, at]).abs() for at in range(FEATURES)) + model.bias
    )
    torch.testing.assert_close(model.verify(left, right)[0], expected)


def test_the_siamese_net_answers_with_the_class_of_the_most_alike_row() -> None:
    model = make("siamese")
    assert isinstance(model, Siamese)
    support, label, query, _ = clusters(2, 3)
    found = model.log_probabilities(support, label, query, WAYS).argmax(-1)
    for task in range(2):
        for row in range(query.shape[1]):
            pairs = model.verify(model.embedding(query[task, row]), model.embedding(support[task]))
            assert found[task, row] == label[task, pairs.argmax()]


def test_siamese_pairs_of_one_class_weigh_as_much_as_those_of_two() -> None:
    model = make("siamese")
    assert isinstance(model, Siamese)
    support, label, query, answer = clusters(2, 2)
    same, different = [], []
    for task in range(2):
        for row in range(query.shape[1]):
            for known in range(support.shape[1]):
                logit = model.verify(model.embedding(query[task, row]), model.embedding(support[task, known]))
                if answer[task, row] == label[task, known]:
                    same.append(functional.softplus(-logit))
                else:
                    different.append(functional.softplus(logit))
    expected = (torch.stack(same).mean() + torch.stack(different).mean()) / 2
    torch.testing.assert_close(model.loss(support, label, query, answer, WAYS), expected)
