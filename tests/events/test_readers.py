"""Logs in their publishers' layouts and generic ones, whole and damaged."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from recmeta.contexts import Contexts, load_contexts
from recmeta.errors import InputError, NotFoundError, SchemaError
from recmeta.events.readers import preset, read_source
from recmeta.events.schema import RawLog

Reader = Callable[..., RawLog]


@pytest.fixture
def read(tmp_path: Path, parse_contexts: Callable[[str], Contexts]) -> Reader:
    """Read a frame, or bytes, as a generic log under a file name, with source options and extra columns."""

    def read(content: pl.DataFrame | bytes, name: str, options: str = "", columns: str = "") -> RawLog:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".parquet"):
            content.write_parquet(path)
        elif name.endswith(".jsonl"):
            content.with_columns(pl.col(pl.Datetime).dt.strftime("%+")).write_ndjson(path)
        elif name.endswith(".csv.gz"):
            path.write_bytes(gzip.compress(content.write_csv(datetime_format="%+").encode()))
        else:
            content.write_csv(path, datetime_format="%+")
        contexts = parse_contexts(
            "contexts: {viewing: {positives: [VIEW], negatives: {sample: {}}}}\n"
            "source:\n  columns: {user_id: who, item_id: what, event_type: how, event_timestamp: when"
            f"{columns}}}\n{options}"
        )
        return read_source("generic", path, contexts)

    return read


def stamps(raw: RawLog) -> list[datetime | None]:
    return raw.rows.get_column("event_timestamp").to_list()


def one_row(when: str, **more: str) -> bytes:
    names = ["who", "what", "how", "when", *more]
    return (",".join(names) + "\n" + ",".join(["u", "i", "VIEW", when, *more.values()]) + "\n").encode()


NOON = datetime(2026, 1, 10, 12, tzinfo=UTC)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv", "log.csv.gz", "log.jsonl"])
def test_one_log_reads_the_same_from_every_format(read: Reader, log: pl.DataFrame, name: str) -> None:
    rows = read(log, name).rows.drop("file")
    expected = log.rename(
        {"who": "user_id", "what": "item_id", "how": "event_type", "when": "event_timestamp"}
    )
    assert rows.drop("row").equals(expected)
    assert rows.get_column("row").to_list() == list(range(1, 31))


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-10T12:00:00Z", "2026-01-10T12:00:00.000Z", "2026-01-10 12:00:00+00:00",
        "2026-01-10T14:00:00+0200", "2026-01-10 12:00:00 UTC", "2026-01-10T12:00Z",
        "1768046400", "1768046400.0", " 2026-01-10T07:00:00-05:00 ",
    ],
)  # fmt: skip
def test_stamps_with_a_zone_and_numbers_are_instants(read: Reader, text: str) -> None:
    assert stamps(read(one_row(text), "log.csv")) == [NOON]


@pytest.mark.parametrize(("unit", "number"), [("ms", "1768046400000"), ("us", "1768046400000000")])
def test_the_unit_of_numbers_is_declared(read: Reader, unit: str, number: str) -> None:
    assert stamps(read(one_row(number), "log.csv", f"  timestamp_unit: {unit}")) == [NOON]


def test_numbers_in_parquet_may_be_whole_or_not(read: Reader, log: pl.DataFrame) -> None:
    for dtype in (pl.Int64, pl.UInt32, pl.Float64):
        seconds = log.with_columns(pl.col("when").dt.epoch("s").cast(dtype))
        assert stamps(read(seconds, "log.parquet")) == log.get_column("when").to_list()


def test_stamps_without_a_zone_are_refused(read: Reader, log: pl.DataFrame) -> None:
    for content, name in (
        (one_row("2026-01-10 12:00:00"), "log.csv"),
        (log.with_columns(pl.col("when").dt.replace_time_zone(None)), "log.parquet"),
    ):
        with pytest.raises(SchemaError, match=r"column when: expected instants with a time zone"):
            read(content, name)


def test_stamps_without_a_zone_are_utc_where_the_contexts_say_so(read: Reader, log: pl.DataFrame) -> None:
    naive = log.with_columns(pl.col("when").dt.replace_time_zone(None))
    assert stamps(read(naive, "log.parquet", "  timezone: UTC")) == log.get_column("when").to_list()
    assert stamps(read(one_row("2026-01-10 12:00:00"), "log.csv", "  timezone: UTC")) == [NOON]


def test_one_stamp_without_a_zone_is_its_own_rows_fault(read: Reader) -> None:
    content = one_row("2026-01-10T12:00:00Z") + b"u,i,VIEW,2026-01-10T12:00:00\nu,i,VIEW,\nu,i,VIEW,never\n"
    assert stamps(read(content, "log.csv")) == [NOON, None, None, None]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e300", "9223372036854775807", "-99999999999999"])
def test_numbers_that_are_no_date_are_unreadable_and_never_wrap_around(read: Reader, number: str) -> None:
    content = one_row(number) + b"u,i,VIEW,1768046400\n"
    assert stamps(read(content, "log.csv")) == [None, NOON]


def test_a_nanosecond_parquet_becomes_microseconds(read: Reader, log: pl.DataFrame) -> None:
    rows = read(log.with_columns(pl.col("when").dt.cast_time_unit("ns")), "log.parquet").rows
    assert rows.schema["event_timestamp"] == pl.Datetime("us", "UTC")


def test_another_time_zone_is_converted(read: Reader, log: pl.DataFrame) -> None:
    moved = log.with_columns(pl.col("when").dt.convert_time_zone("Asia/Taipei"))
    assert stamps(read(moved, "log.parquet")) == log.get_column("when").to_list()


@pytest.mark.parametrize("name", ["log.parquet", "log.csv.gz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused_with_its_name(
    read: Reader, log: pl.DataFrame, tmp_path: Path, name: str, share: float
) -> None:
    read(log, name)
    content = (tmp_path / name).read_bytes()
    with pytest.raises(SchemaError, match=f"{name}.*cannot be read"):
        read(content[: int(len(content) * share)], name)


def test_bytes_of_another_kind_are_refused(read: Reader) -> None:
    for name in ("log.parquet", "log.csv.gz", "log.jsonl", "log.csv"):
        with pytest.raises(SchemaError):
            read(bytes(range(256)) * 8, name)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv"])
def test_a_file_without_rows_is_refused(read: Reader, log: pl.DataFrame, name: str) -> None:
    with pytest.raises(SchemaError, match="at least one row"):
        read(log.clear(), name)


def test_an_empty_file_is_refused(read: Reader) -> None:
    for name in ("log.parquet", "log.csv", "log.jsonl"):
        with pytest.raises(SchemaError):
            read(b"", name)


@pytest.mark.parametrize("column", ["who", "what", "how", "when"])
def test_a_missing_column_is_named(read: Reader, log: pl.DataFrame, column: str) -> None:
    with pytest.raises(SchemaError, match=rf"missing column {column}; found"):
        read(log.drop(column), "log.parquet")


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("who", pl.lit(1.5)),
        ("what", pl.lit([1, 2])),
        ("how", pl.lit(True)),
        ("when", pl.lit(True)),
        ("when", pl.lit("yesterday")),
        ("who", pl.lit(None)),
    ],
)
def test_a_wrongly_typed_column_is_named_with_its_type(
    read: Reader, log: pl.DataFrame, column: str, values: pl.Expr
) -> None:
    with pytest.raises(SchemaError, match=rf"column {column}: expected .*, found"):
        read(log.with_columns(values.alias(column)), "log.parquet")


def test_a_weight_of_words_is_a_wrongly_typed_column(read: Reader) -> None:
    with pytest.raises(SchemaError, match="column heft: expected numbers"):
        read(one_row("1768046400", heft="heavy"), "log.csv", columns=", weight: heft")


def test_optional_numbers_keep_their_faults_visible(read: Reader) -> None:
    content = (
        one_row("1768046400", w="1.5", p="3", q="0.5") + b"u,i,VIEW,1768046400,x,1.5,nan\nu,i,VIEW,1,,,\n"
    )
    rows = read(content, "log.csv", columns=", weight: w, position: p, propensity: q").rows
    weight, propensity = rows.get_column("weight").to_list(), rows.get_column("propensity").to_list()
    assert weight[0] == 1.5 and weight[1] != weight[1] and weight[2] is None
    assert rows.get_column("position").to_list() == [3, -1, None]
    assert propensity[0] == 0.5 and propensity[1] != propensity[1] and propensity[2] is None


def test_a_blank_created_stamp_is_the_events_own_and_an_unreadable_one_is_not(read: Reader) -> None:
    content = one_row("1768046400", made="1768046401") + b"u,i,VIEW,1768046400,\nu,i,VIEW,1768046400,soon\n"
    created = read(content, "log.csv", columns=", created_timestamp: made").rows.get_column(
        "created_timestamp"
    )
    assert created.to_list() == [NOON.replace(second=1), NOON, None]


def test_categories_of_a_generic_log_become_items(read: Reader, log: pl.DataFrame) -> None:
    listed = log.head(6).with_columns(kinds=pl.Series([["b", "a"], ["a"], [], None, ["c"], ["z"]]))
    items = read(listed, "log.parquet", columns=", categories: kinds").items
    assert items is not None
    assert dict(items.iter_rows()) == {"i0": ["a", "b", "z"], "i1": ["a"], "i4": ["c"]}


def test_whole_number_ids_are_text(read: Reader, log: pl.DataFrame) -> None:
    numbered = log.with_columns(who=pl.lit(-3499919498720038879))
    assert read(numbered, "log.parquet").rows.get_column("user_id").unique().to_list() == [
        "-3499919498720038879"
    ]


def test_an_unknown_ending_unknown_source_or_missing_path_is_refused(
    read: Reader, parse_contexts: Callable[[str], Contexts], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"ends in \.parquet"):
        read(b"x", "log.xlsx")
    template = preset("deskdrop")
    assert template is not None
    contexts = load_contexts(template)
    with pytest.raises(InputError, match="expected a source among"):
        read_source("kuairand", tmp_path, contexts)
    with pytest.raises(InputError, match="needs the path"):
        read_source("deskdrop", None, contexts)
    with pytest.raises(NotFoundError, match="does not exist"):
        read_source("deskdrop", tmp_path / "nowhere.csv", contexts)
    with pytest.raises(InputError, match="reads no file"):
        read_source("simulator", tmp_path, contexts)
    with pytest.raises(InputError, match="expected the folder"):
        read_source("cofacts", tmp_path / "log.xlsx", contexts)
    with pytest.raises(NotFoundError, match="article_reply_feedbacks"):
        read_source("cofacts", tmp_path, contexts)
    with pytest.raises(InputError, match=r"source\.columns"):
        read_source("generic", tmp_path / "log.xlsx", contexts)


def test_deskdrop_reads_as_its_publisher_counts_it(real_data: Path) -> None:
    template = preset("deskdrop")
    assert template is not None
    raw = read_source(
        "deskdrop", real_data / "deskdrop" / "users_interactions.csv.gz", load_contexts(template)
    )
    assert dict(raw.rows.get_column("event_type").value_counts().rows()) == {
        "VIEW": 61_086, "LIKE": 5_745, "BOOKMARK": 2_463, "COMMENT CREATED": 1_611, "FOLLOW": 1_407,
    }  # fmt: skip
    assert raw.rows.get_column("user_id").n_unique() == 1_895
    assert raw.rows.get_column("item_id").n_unique() == 2_987
    assert raw.rows.null_count().sum_horizontal().item() == 0
    assert raw.items is None


def test_cofacts_reads_as_its_publisher_counts_it(real_data: Path) -> None:
    template = preset("cofacts")
    assert template is not None
    raw = read_source("cofacts", real_data / "cofacts", load_contexts(template))
    counts = dict(raw.rows.get_column("event_type").value_counts().rows())
    assert counts == {"UPVOTE": 69_883, "DOWNVOTE": 4_129, "REQUEST": 38_888 - 7_617, "REPLY": 28_038}
    assert raw.left_out == 7_617
    assert raw.items is not None
    assert raw.items.get_column("item_id").is_unique().all()
    assert raw.items.get_column("categories").list.len().min() >= 1  # type: ignore[operator]
