"""Towers: what their vectors depend on, and the loss that fits them."""

from __future__ import annotations

import pytest
import torch
from small_towers import SHAPE, item_rows, small_towers, user_rows

from recmeta.errors import SchemaError
from recmeta.models.two_towers import TowerShape, distillation_loss


def test_scores_are_inner_products_of_vectors_of_the_same_size() -> None:
    towers = small_towers()
    vectors, queries = towers.item_vectors(**item_rows(7)), towers.queries(**user_rows(5))
    assert vectors.shape == (7, SHAPE.vector_size)
    assert queries.shape == (5, SHAPE.vector_size)


@pytest.mark.parametrize("column", ["dense", "item", "categories"])
def test_an_items_vector_depends_on_each_column_of_its_own_row_alone(column: str) -> None:
    towers, rows = small_towers(), item_rows(6)
    before = towers.item_vectors(**rows)
    rows[column][2] = rows[column][2] + (1 if column != "dense" else 0.7)
    changed = (towers.item_vectors(**rows) != before).any(dim=1)
    assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("column", ["dense", "user", "history", "context"])
def test_a_query_depends_on_each_column_of_its_own_row_alone(column: str) -> None:
    towers, rows = small_towers(), user_rows(6)
    before = towers.queries(**rows)
    rows[column][2] = rows[column][2] + (1 if column != "dense" else 0.7)
    changed = (towers.queries(**rows) != before).any(dim=1)
    assert changed.tolist() == [False, False, True, False, False, False]


def test_the_padding_of_a_history_and_of_categories_counts_for_nothing() -> None:
    towers = small_towers()
    users, items = user_rows(1), item_rows(1)
    users["history"][0] = torch.tensor([4, 5, 0, 0, 0])
    items["categories"][0] = torch.tensor([2, 0, 0, 0])
    query, vector = towers.queries(**users), towers.item_vectors(**items)
    with torch.no_grad():
        towers.item_table[0] += 10.0
        towers.category_table[0] += 10.0
    assert torch.equal(towers.queries(**users), query)
    assert torch.equal(towers.item_vectors(**items), vector)


def test_tables_are_the_shared_models_and_are_not_fitted() -> None:
    towers = small_towers()
    fitted = {name for name, _ in towers.named_parameters()}
    assert not fitted & {"user_table", "item_table", "category_table"}
    assert "context_table" in fitted


def test_sizes_that_make_no_model_are_refused() -> None:
    with pytest.raises(SchemaError, match="vector_size: expected at least 1, found 0"):
        TowerShape(item_features=3, user_features=3, contexts=2, vector_size=0)


def test_a_student_that_says_the_same_but_for_the_level_has_no_loss() -> None:
    teacher = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert distillation_loss(teacher + 3.0, teacher, 0.5).item() == pytest.approx(0.0, abs=1e-5)


def test_the_loss_is_the_divergence_of_softmaxes_and_the_square_of_centred_gaps() -> None:
    scores, teacher = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[1.0, 0.5, 2.0]])
    p, q = torch.softmax(teacher, -1)[0], torch.softmax(scores, -1)[0]
    divergence = (p * (p / q).log()).sum()
    gap = (scores - teacher)[0]
    square = ((gap - gap.mean()) ** 2).mean()
    assert distillation_loss(scores, teacher, 0.25).item() == pytest.approx(
        (divergence + 0.25 * square).item(), abs=1e-6
    )
