"""The items that a bundle knows, and which of them are alive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from recmeta.errors import IntegrityError
from recmeta.events.schema import INTERACTION_SCHEMA, ITEM_SCHEMA
from recmeta.serving.catalogue import SCHEMA, Catalogue, catalogue_table

NOW = datetime(2026, 6, 30, tzinfo=UTC)


def written(folder: Path, ages: dict[str, int | None]) -> Path:
    """A catalogue of items that were last touched so many days ago."""
    path = folder / "catalogue.parquet"
    last = [None if age is None else NOW - timedelta(days=age) for age in ages.values()]
    pl.DataFrame(
        {"item_id": list(ages), "categories": [[f"about {item}"] for item in ages]}
        | {"first_known": last, "last_known": last},
        schema=SCHEMA,
    ).write_parquet(path)
    return path


def test_only_items_that_were_touched_lately_are_alive_and_the_latest_come_first(tmp_path: Path) -> None:
    catalogue = Catalogue(written(tmp_path, {"old": 20, "b": 3, "a": 3, "new": 1, "never": None}))
    assert catalogue.ids[: catalogue.alive(NOW, timedelta(days=14))] == ["new", "a", "b"]
    assert catalogue.ids == ["new", "a", "b", "old", "never"]
    assert len(catalogue) == 5


def test_an_item_dies_exactly_after_the_set_time(tmp_path: Path) -> None:
    catalogue = Catalogue(written(tmp_path, {"edge": 14}))
    assert catalogue.alive(NOW, timedelta(days=14)) == 1
    assert catalogue.alive(NOW + timedelta(microseconds=1), timedelta(days=14)) == 0


def test_an_unknown_item_has_no_categories_and_is_no_error(tmp_path: Path) -> None:
    catalogue = Catalogue(written(tmp_path, {"a": 1}))
    assert catalogue.categories_of(["a", "nobody"]) == [("about a",), ()]
    assert catalogue.places(["nobody", "a"]).tolist() == [-1, 0]
    assert "a" in catalogue
    assert "nobody" not in catalogue


def test_an_empty_catalogue_is_ordinary(tmp_path: Path) -> None:
    catalogue = Catalogue(written(tmp_path, {}))
    assert (catalogue.alive(NOW, timedelta(days=14)), catalogue.ids) == (0, [])
    assert catalogue.places([]).tolist() == []


def test_another_table_under_this_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.parquet"
    pl.DataFrame({"item_id": [1]}).write_parquet(path)
    with pytest.raises(IntegrityError, match="expected columns"):
        Catalogue(path)


def test_the_table_holds_when_each_item_was_first_and_last_known_and_what_it_is_about() -> None:
    recorded = NOW + timedelta(days=2)
    instants = {"event_timestamp": [NOW, NOW, NOW], "created_timestamp": [NOW, recorded, NOW]}
    rows = {"event_id": ["1", "2", "3"], "item_id": ["b", "b", "a"], **instants}
    events = pl.DataFrame(rows).cast({name: INTERACTION_SCHEMA[name] for name in rows})
    items = pl.DataFrame({"item_id": ["b", "c"], "categories": [["film"], ["music"]]}, schema=ITEM_SCHEMA)
    table = catalogue_table(events.lazy(), items)
    assert table.schema == SCHEMA
    assert table.rows() == [
        ("a", [], NOW, NOW),
        ("b", ["film"], NOW, recorded),
        ("c", ["music"], None, None),
    ]


def test_a_table_of_nothing_is_empty_and_typed() -> None:
    table = catalogue_table(pl.DataFrame(schema=INTERACTION_SCHEMA).lazy(), pl.DataFrame(schema=ITEM_SCHEMA))
    assert table.is_empty()
    assert table.schema == SCHEMA
