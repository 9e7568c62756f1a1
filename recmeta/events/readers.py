"""Readers of logs, in their publishers' layouts and generic ones, into one raw table.

A reader renames columns and turns stamps into instants; it refuses a file that cannot be read at
all, and leaves the judgement of single rows to the store. It must never know a workspace.

The raw table has these columns; where a source has none of the optional ones they are left out:
    row Int64               number of the row in its file, from 1, without the header
    file String             name of that file
    event_id String         optional; null where the source gives none
    user_id, item_id, event_type String
    event_timestamp         Datetime('us', 'UTC'); null where it could not be read
    created_timestamp       optional; the event's own instant where the source leaves it blank, null
                            where it could not be read
    weight Float32, position Int32, propensity Float32      optional; NaN or -1 where unreadable
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import polars as pl

from recmeta.contexts import Contexts, Source
from recmeta.errors import InputError, NotFoundError, SchemaError
from recmeta.events.schema import INSTANT, RawLog

if TYPE_CHECKING:
    from recmeta.events.simulator import SimulatorSettings

SourceName = Literal["deskdrop", "cofacts", "simulator", "generic"]

CATEGORY_CONFIDENCE = 0.5
"""Cofacts' classifier gives a share for every category; half is its own site's cut."""

_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z: later instants have no calendar date in Python
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000}


def preset(source: str) -> Path | None:
    """The contexts.yaml that goes with a source; None where its contexts must be written by hand."""
    path = Path(__file__).parent / "presets" / f"{source}.yaml"
    return path if source in get_args(SourceName) and path.exists() else None


def read_source(
    source: str, path: Path | None, contexts: Contexts, simulator: SimulatorSettings | None = None
) -> RawLog:
    """Read a whole log.

    ``path`` is the file users_interactions.csv(.gz) for deskdrop, the folder with the publisher's
    four files for cofacts, a .parquet, .csv(.gz) or .jsonl file for generic, and None for simulator.

    Raises:
        InputError: an unknown source, or a path where none belongs (or none where one does).
        NotFoundError: no such file.
        SchemaError: a file that cannot be read, without rows, or with a missing or wrongly typed column.
    """
    if source == "simulator":
        from recmeta.events.simulator import SimulatorSettings, simulate

        if path is not None:
            raise InputError(f"the simulator reads no file, found {path}")
        return simulate(simulator or SimulatorSettings())
    readers: dict[str, Callable[[Path, Contexts], RawLog]] = {
        "deskdrop": _read_deskdrop,
        "cofacts": _read_cofacts,
        "generic": _read_generic,
    }
    if source not in readers:
        raise InputError(f"expected a source among {', '.join(get_args(SourceName))}; found {source!r}")
    if path is None:
        raise InputError(f"source {source} needs the path of its data, found none")
    if not path.exists():
        raise NotFoundError(f"source {source}: {path} does not exist")
    return readers[source](path, contexts)


def _read_table(path: Path) -> pl.DataFrame:
    """Read a file by its extension; CSV columns come as text, so that no value is guessed away."""
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            table = pl.read_parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            table = pl.read_csv(path, infer_schema=False)
        elif name.endswith((".jsonl", ".ndjson")):
            table = pl.read_ndjson(path, infer_schema_length=None)
        else:
            raise InputError(f"{path}: expected a name that ends in .parquet, .csv, .csv.gz or .jsonl")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SchemaError(f"{path}: the file cannot be read, is it whole? ({reason[:300]})") from error
    if table.height == 0:
        raise SchemaError(f"{path}: expected at least one row, found none")
    return table.with_row_index("row", offset=1).with_columns(
        pl.col("row").cast(pl.Int64), pl.lit(path.name).alias("file")
    )


def _require(table: pl.DataFrame, path: Path, *columns: str) -> None:
    absent = [column for column in columns if column not in table.columns]
    if absent:
        found = ", ".join(name for name in table.columns if name not in ("row", "file"))
        raise SchemaError(f"{path}: missing column {', '.join(absent)}; found {found[:500]}")


def _wrong_type(path: Path, column: pl.Series, expected: str) -> SchemaError:
    shown = repr(column.drop_nulls().head(1).to_list())[1:-1][:80]
    return SchemaError(
        f"{path}: column {column.name}: expected {expected}, found {column.dtype}"
        + (f" such as {shown}" if shown else "")
    )


def _text(table: pl.DataFrame, path: Path, name: str) -> pl.Series:
    """Ids and event types: text, categories or whole numbers."""
    column = table.get_column(name)
    if column.dtype == pl.Null or not (
        column.dtype.is_integer() or column.dtype in (pl.String, pl.Categorical, pl.Enum)
    ):
        raise _wrong_type(path, column, "text or whole numbers")
    return column.cast(pl.String)


def _instants(
    table: pl.DataFrame, path: Path, name: str, *, unit: str = "s", naive_is_utc: bool = False
) -> pl.Series:
    """Instants in UTC: zoned datetimes, ISO 8601 text with its zone, or numbers since 1970 in ``unit``.

    What cannot be read becomes null; a column without one readable value is of the wrong type.
    """
    column = table.get_column(name)
    if isinstance(column.dtype, pl.Datetime):
        naive = column.dtype.time_zone is None
        found = column.dt.replace_time_zone("UTC") if naive else column.dt.convert_time_zone("UTC")
        found = found.dt.cast_time_unit("us")
    elif column.dtype.is_numeric():
        naive, found = False, _since_epoch(column, unit)
    elif column.dtype == pl.String:
        text = column.str.strip_chars().str.replace(r"(?i)\s*utc$", "Z").str.replace(" ", "T", literal=True)
        numbers = _since_epoch(text.cast(pl.Int64, strict=False), unit).zip_with(
            text.str.contains(r"^[+-]?\d+$"), _since_epoch(text.cast(pl.Float64, strict=False), unit)
        )
        zoned = _first_of(text, "%+", "%Y-%m-%dT%H:%M%#z", zone=True)
        plain = _first_of(text, "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", zone=False)
        aware = numbers.zip_with(numbers.is_not_null(), zoned)
        # Among zoned stamps a plain one is that row's fault; a column of plain ones is the file's.
        naive = aware.null_count() == len(aware) and plain.null_count() < len(plain)
        found = aware.zip_with(aware.is_not_null(), plain) if naive or naive_is_utc else aware
    else:
        raise _wrong_type(path, column, "instants")
    if naive and not naive_is_utc:
        raise SchemaError(
            f"{path}: column {name}: expected instants with a time zone, found stamps without one; "
            "set `source.timezone: UTC` in contexts.yaml where they are UTC"
        )
    if found.null_count() == len(found) and column.null_count() < len(column) and column.dtype == pl.String:
        raise _wrong_type(path, column, "instants (ISO 8601 with a zone, or numbers since 1970)")
    return found


def _first_of(text: pl.Series, *formats: str, zone: bool) -> pl.Series:
    """Parse with the first format that fits each value."""
    parsed = pl.Series(text.name, [None] * len(text), dtype=INSTANT)
    for form in formats:
        found = text.str.to_datetime(form, time_unit="us", time_zone="UTC" if zone else None, strict=False)
        found = found if zone else found.dt.replace_time_zone("UTC")
        parsed = parsed.zip_with(parsed.is_not_null(), found)
    return parsed


def _since_epoch(column: pl.Series, unit: str) -> pl.Series:
    """Numbers since 1970 as instants; what has no calendar date, NaN and infinity become null."""
    per_second = _PER_SECOND[unit]
    values = column.cast(pl.Float64 if column.dtype.is_float() else pl.Int64, strict=False)
    inside = values.is_between(-_LAST_SECOND * per_second, _LAST_SECOND * per_second)
    values = values.zip_with(inside.fill_null(False), pl.Series([None], dtype=values.dtype))
    microseconds = values * (1_000_000 // per_second)
    if microseconds.dtype.is_float():
        microseconds = microseconds.round(0)
    return microseconds.cast(pl.Int64).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _numbers(table: pl.DataFrame, path: Path, name: str) -> pl.Series:
    """Numbers as Float32; text that is none becomes NaN, what is blank stays null."""
    column = table.get_column(name)
    if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Null)):
        raise _wrong_type(path, column, "numbers")
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        column = column.zip_with(column != "", pl.Series([None], dtype=pl.String))
    numbers = column.cast(pl.Float64, strict=False)
    unreadable = column.is_not_null() & numbers.is_null()
    if len(column) > column.null_count() == len(column) - unreadable.sum():
        raise _wrong_type(path, column, "numbers")
    return numbers.zip_with(~unreadable, pl.Series([float("nan")])).cast(pl.Float32).alias(name)


def _positions(table: pl.DataFrame, path: Path, name: str) -> pl.Series:
    """Whole numbers as Int32; what is none, or none that fits, becomes -1, which no rule lets pass."""
    numbers = _numbers(table, path, name).cast(pl.Float64)
    fits = (numbers.is_between(0, 2**31 - 1) & (numbers == numbers.floor())) | numbers.is_null()
    return numbers.zip_with(fits, pl.Series([-1.0])).cast(pl.Int32).alias(name)


def _read_deskdrop(path: Path, contexts: Contexts) -> RawLog:
    del contexts  # the publisher's layout says it all
    table = _read_table(path)
    _require(table, path, "timestamp", "eventType", "contentId", "personId")
    rows = table.select(
        "row",
        "file",
        _text(table, path, "personId").alias("user_id"),
        _text(table, path, "contentId").alias("item_id"),
        _text(table, path, "eventType").alias("event_type"),
        _instants(table, path, "timestamp").alias("event_timestamp"),
    )
    return RawLog(rows, None, f"deskdrop {path.name}")


def _read_cofacts(path: Path, contexts: Contexts) -> RawLog:
    del contexts  # the publisher's layout says it all
    if not path.is_dir():
        raise InputError(f"source cofacts: expected the folder with the publisher's files, found file {path}")
    tables = {
        "article_reply_feedbacks": pl.when(pl.col("score").str.strip_chars() == "1")
        .then(pl.lit("UPVOTE"))
        .when(pl.col("score").str.strip_chars() == "-1")
        .then(pl.lit("DOWNVOTE"))
        .otherwise(pl.format("score {}", pl.col("score").fill_null(""))),
        "reply_requests": pl.lit("REQUEST"),
        "article_replies": pl.lit("REPLY"),
    }
    parts: list[pl.DataFrame] = []
    for name, event_type in tables.items():
        file = _publisher_file(path, name)
        table = _read_table(file)
        score = ("score",) if name == "article_reply_feedbacks" else ()
        _require(table, file, "articleId", "userIdsha256", "createdAt", *score)
        parts.append(
            table.select(
                "row",
                "file",
                pl.col("userIdsha256").alias("user_id"),
                pl.col("articleId").alias("item_id"),
                event_type.alias("event_type"),
                _instants(table, file, "createdAt").alias("event_timestamp"),
            )
        )
    rows = pl.concat(parts)
    # The chat bot of 2016 and early 2017 kept no user with a request: every fifth has none.
    owned = rows.filter((pl.col("event_type") != "REQUEST") | (pl.col("user_id").fill_null("") != ""))
    file = _publisher_file(path, "article_categories")
    table = _read_table(file)
    _require(table, file, "articleId", "categoryId", "aiConfidence")
    sure = table.with_columns(_numbers(table, file, "aiConfidence")).filter(
        pl.col("aiConfidence") >= CATEGORY_CONFIDENCE, pl.col("aiConfidence") <= 1
    )
    items = _gather_items(sure, "articleId", "categoryId")
    return RawLog(owned, items, f"cofacts {path.name}", rows.height - owned.height)


def _publisher_file(folder: Path, name: str) -> Path:
    for suffix in (".csv", ".csv.gz"):
        if (folder / f"{name}{suffix}").exists():
            return folder / f"{name}{suffix}"
    raise NotFoundError(f"{folder} holds neither {name}.csv nor {name}.csv.gz")


def _gather_items(table: pl.DataFrame, item: str, category: str) -> pl.DataFrame:
    """One row an item, with its categories sorted and each once."""
    return (
        table.select(pl.col(item).alias("item_id"), pl.col(category).alias("categories"))
        .drop_nulls()
        .filter(pl.col("categories") != "")
        .group_by("item_id")
        .agg(pl.col("categories").unique().sort())
        .sort("item_id")
    )


def _read_generic(path: Path, contexts: Contexts) -> RawLog:
    source = contexts.source
    if source is None:
        raise InputError(
            "source generic: contexts.yaml must say in `source.columns` which column is what; "
            "found no `source`"
        )
    table = _read_table(path)
    columns = source.columns
    named = {field: name for field, name in columns.model_dump().items() if name is not None}
    _require(table, path, *named.values())
    parts = {field: _text(table, path, named[field]) for field in ("user_id", "item_id", "event_type")}
    parts["event_timestamp"] = _generic_instants(table, path, columns.event_timestamp, source)
    if columns.created_timestamp is not None:
        given = _given(table, columns.created_timestamp)
        created = _generic_instants(table, path, columns.created_timestamp, source)
        parts["created_timestamp"] = created.zip_with(given, parts["event_timestamp"])
    if columns.event_id is not None:
        parts["event_id"] = _text(table, path, columns.event_id)
    for field in ("weight", "propensity"):
        if field in named:
            parts[field] = _numbers(table, path, named[field])
    if columns.position is not None:
        parts["position"] = _positions(table, path, columns.position)
    rows = table.select("row", "file", *(part.alias(field) for field, part in parts.items()))
    items = None
    if columns.categories is not None:
        items = _generic_items(table, path, parts["item_id"], columns.categories)
    return RawLog(rows, items, f"generic {path.name}")


def _given(table: pl.DataFrame, name: str) -> pl.Series:
    column = table.get_column(name)
    return column.str.strip_chars().fill_null("") != "" if column.dtype == pl.String else column.is_not_null()


def _generic_instants(table: pl.DataFrame, path: Path, name: str, source: Source) -> pl.Series:
    return _instants(table, path, name, unit=source.timestamp_unit, naive_is_utc=source.timezone == "UTC")


def _generic_items(table: pl.DataFrame, path: Path, item_id: pl.Series, name: str) -> pl.DataFrame:
    column = table.get_column(name)
    if column.dtype == pl.List(pl.String):
        long = pl.DataFrame({"item": item_id, "category": column}).explode("category")
    else:
        long = pl.DataFrame({"item": item_id, "category": _text(table, path, name)})
    return _gather_items(long, "item", "category")
