"""A file is scored as the server would score its rows; what cannot be scored is told, not written."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Living

from recmeta import cli
from recmeta.errors import InputError, NotFoundError, RecmetaError, SchemaError
from recmeta.events.schema import INTERACTION_SCHEMA
from recmeta.serving import batch, pairs
from recmeta.serving.batch import score_file
from recmeta.serving.knowledge import Question
from recmeta.serving.recommender import Recommender
from recmeta.settings import load_settings


@pytest.fixture
def now(living: Living) -> datetime:
    return living.until + timedelta(hours=1, microseconds=17)


def drawn_rows(living: Living, rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows in no order, some of them twice, of users and items that are known and that are not."""
    draw = np.random.default_rng(seed)
    users = [*sorted(set(living.events["user_id"])), "stranger", "é\u2028", "x" * 256]
    items = [*sorted(set(living.events["item_id"])), "never seen", "touched since", "y" * 256]
    return pl.DataFrame(
        {
            "note": [f"row {row}" for row in range(rows)],
            "context": draw.choice(living.contexts.names, rows),
            "user_id": draw.choice(users, rows),
            "item_id": draw.choice(items, rows),
        }
    )


def written(path: Path, rows: pl.DataFrame) -> Path:
    rows.write_parquet(path)
    return path


def ranked(recommender: Recommender, rows: pl.DataFrame, now: datetime | None) -> pl.Series:
    """The score of each row, as answers to requests have it."""
    found = {}
    for (context, user), own in rows.group_by("context", "user_id"):
        items = sorted(set(own["item_id"]))
        for item in recommender.rank(str(context), str(user), items, now).items:
            found[context, user, item.item_id] = item.score
    return pl.Series("score", [found[row] for row in rows[:, 1:].iter_rows()], dtype=pl.Float32)


def assert_alike(scored: pl.Series, wanted: pl.Series) -> None:
    """The last bits of a matrix product depend on how many rows there are, in requests too."""
    np.testing.assert_array_max_ulp(scored.to_numpy(), wanted.to_numpy(), 16)


def test_a_file_is_scored_as_requests_are_and_keeps_its_rows(
    living: Living, now: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "ROWS_AT_ONCE", 700)
    monkeypatch.setattr(pairs, "ROWS_OF_A_RUN", 64)
    recommender, user = Recommender(living.settings), living.reader()
    event = {
        "event_id": "live", "user_id": user, "item_id": "touched since", "context": "reading",
        "event_timestamp": living.until, "created_timestamp": living.until, "label": 1, "weight": 1.0,
        "position": None, "propensity": None,
    }  # fmt: skip
    recommender.record(pl.DataFrame([event], schema=INTERACTION_SCHEMA))
    rows = drawn_rows(living, 3000)
    told_of: list[tuple[str, int, int]] = []
    told = score_file(
        living.settings,
        written(tmp_path / "in.parquet", rows),
        tmp_path / "out.parquet",
        as_of=now,
        progress=lambda *step: told_of.append(step),
    )
    scored = pl.read_parquet(tmp_path / "out.parquet")
    assert scored.drop("score").equals(rows)
    assert_alike(scored["score"], ranked(recommender, rows, now))
    assert scored["score"].is_between(0, 1).all()
    assert scored["score"].n_unique() > 1000
    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    assert metadata[b"recmeta.bundle"].decode() == told["bundle"] == living.version
    assert datetime.fromisoformat(metadata[b"recmeta.as_of"].decode()) == now
    assert told["contexts"] == dict(sorted(rows["context"].value_counts().iter_rows()))
    assert told_of[-1] == ("rows", 3000, 3000)
    assert len(told_of) > 4


def test_one_users_rows_have_to_the_bit_the_scores_of_a_request(
    living: Living, now: datetime, tmp_path: Path
) -> None:
    recommender = Recommender(living.settings)
    items = sorted(recommender._catalogue.ids)
    for context in living.contexts.names:
        for user in (living.reader(), "stranger"):
            rows = pl.DataFrame({"note": "", "context": context, "user_id": user, "item_id": items})
            score_file(
                living.settings, written(tmp_path / "in.parquet", rows), tmp_path / "out.parquet", as_of=now
            )
            scored = pl.read_parquet(tmp_path / "out.parquet")["score"]
            assert scored.equals(ranked(recommender, rows, now), check_dtypes=True)


def test_many_users_have_to_the_bit_the_dense_rows_of_requests(
    living: Living, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = Recommender(living.settings)
    bulk, users = recommender.pairs(now), sorted(set(living.events["user_id"]))[:7]
    items = [*recommender._catalogue.ids[:30], "never seen"]
    seen: list[Any] = []
    score = bulk.scorer.score_kept

    def scored(*given: Any, **named: Any) -> Any:
        seen.append(given[-1])
        return score(*given, **named)

    monkeypatch.setattr(bulk.scorer, "score_kept", scored)
    user_of, item_of = np.repeat(np.arange(7), 31), np.tile(np.arange(31), 7)
    for context in living.contexts.names:
        bulk.scores(context, users, items, user_of, item_of)
        places = recommender._catalogue.places(items)
        questions = [Question(context, user, items, places, now, ended=False) for user in users]
        wanted = [recommender._knowledge.of(question).dense.whole for question in questions]
        assert seen.pop().whole.tobytes() == np.concatenate(wanted).tobytes()
    bulk.close()


def test_where_the_log_ended_long_ago_a_file_is_answered_as_of_its_end_like_a_request(
    living: Living, tmp_path: Path
) -> None:
    recommender = Recommender(living.settings)
    assert datetime.now(UTC) - living.until > living.settings.serving.alive_within
    later = living.until + timedelta(minutes=3)
    event = {
        "event_id": "live", "user_id": living.reader(), "item_id": recommender._catalogue.ids[0],
        "context": "reading", "event_timestamp": later, "created_timestamp": later, "label": 1,
        "weight": 1.0, "position": None, "propensity": None,
    }  # fmt: skip
    recommender.record(pl.DataFrame([event], schema=INTERACTION_SCHEMA))
    rows = drawn_rows(living, 200)
    told = score_file(living.settings, written(tmp_path / "in.parquet", rows), tmp_path / "out.parquet")
    answer = recommender.rank("reading", living.reader(), ["i1"])
    assert datetime.fromisoformat(told["as_of"]) == answer.as_of > later
    assert_alike(pl.read_parquet(tmp_path / "out.parquet")["score"], ranked(recommender, rows, None))


def test_the_command_line_takes_one_context_for_all_rows_and_tells_what_it_did(
    living: Living, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = drawn_rows(living, 50).drop("context")
    source, target = written(tmp_path / "in.parquet", rows), tmp_path / "made" / "out.parquet"
    as_of = living.until + timedelta(hours=1)
    arguments = ["score", str(source), str(target), "-w", str(living.settings.workspace), "-c", "feed"]
    cli.app([*arguments, "--as-of", as_of.isoformat(), "--json"], standalone_mode=False)
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert (told["rows"], told["contexts"], told["bundle"]) == (50, {"feed": 50}, living.version)
    assert shown.err.startswith("rows: done")
    alike = rows.select("note", pl.lit("feed").alias("context"), "user_id", "item_id")
    wanted = ranked(Recommender(living.settings), alike, as_of)
    assert_alike(pl.read_parquet(target)["score"], wanted)
    cli.app([*arguments], standalone_mode=False)
    assert "50 rows in" in " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    with pytest.raises(InputError, match="--as-of: expected an instant"):
        cli.app([*arguments, "--as-of", "yesterday"], standalone_mode=False)


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_text_may_be_held_as_any_kind_of_text(
    living: Living, now: datetime, tmp_path: Path, kind: Any
) -> None:
    table = drawn_rows(living, 100).to_arrow().select(["context", "user_id", "item_id"])
    table = pa.table({name: table[name].cast(pa.string()) for name in table.column_names})
    pq.write_table(table, tmp_path / "plain.parquet")
    columns = {
        name: table[name].dictionary_encode() if pa.types.is_dictionary(kind) else table[name].cast(kind)
        for name in table.column_names
    }
    pq.write_table(pa.table(columns), tmp_path / "other.parquet")
    for name in ("plain", "other"):
        score_file(living.settings, tmp_path / f"{name}.parquet", tmp_path / f"{name}.out", as_of=now)
    scored = [pq.read_table(tmp_path / f"{name}.out")["score"] for name in ("plain", "other")]
    assert scored[0].equals(scored[1])


def test_a_file_without_rows_gives_one_without_rows(living: Living, tmp_path: Path) -> None:
    source = written(tmp_path / "in.parquet", drawn_rows(living, 0).cast(pl.String))
    told = score_file(living.settings, source, tmp_path / "out.parquet")
    assert (told["rows"], told["contexts"]) == (0, {})
    assert pl.read_parquet(tmp_path / "out.parquet").columns == [
        "note", "context", "user_id", "item_id", "score",
    ]  # fmt: skip


def _set(column: str, row: int, value: str | None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    at = pl.int_range(pl.len()) == row
    return lambda rows: rows.with_columns(
        pl.when(at).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)
    )


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (lambda rows: rows.drop("user_id"), SchemaError, "expected one column user_id, found note, context"),
        (lambda rows: rows.drop("context"), SchemaError, "expected one column context.*or give --context"),
        (
            lambda rows: rows.with_columns(item_id=7),
            SchemaError,
            "column item_id: expected text, found int32",
        ),
        (lambda rows: rows.with_columns(score=0.5), SchemaError, "expected no column score"),
        (
            _set("context", 60, "nowhere"),
            NotFoundError,
            "row 60 .*unknown context 'nowhere'; bundle .* serves",
        ),
        (_set("context", 60, None), InputError, "row 60 .*context: expected text, found null"),
        (
            _set("user_id", 0, None),
            InputError,
            r"row 0 \(the first is 0\): user_id: expected text, found null",
        ),
        (_set("item_id", 99, ""), InputError, "row 99 .*item_id: expected 1 to 256 bytes, found 0"),
        (_set("user_id", 73, "a\x00b"), InputError, "row 73 .*user_id: expected no control characters"),
        (_set("user_id", 73, "z" * 257), InputError, "row 73 .*user_id: expected 1 to 256 bytes, found 257"),
    ],
)
def test_rows_that_cannot_be_scored_are_named_and_nothing_is_written(
    living: Living,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pl.DataFrame], pl.DataFrame],
    kind: type[RecmetaError],
    told: str,
) -> None:
    monkeypatch.setattr(batch, "ROWS_AT_ONCE", 50)
    target = tmp_path / "out" / "out.parquet"
    source = written(tmp_path / "in.parquet", change(drawn_rows(living, 100)))
    with pytest.raises(kind, match=told):
        score_file(living.settings, source, target)
    assert not list(target.parent.glob("*"))


def test_files_that_cannot_be_used_are_refused(living: Living, now: datetime, tmp_path: Path) -> None:
    source, out = written(tmp_path / "in.parquet", drawn_rows(living, 3000)), tmp_path / "out.parquet"
    out.write_text("what was there")
    settings, content = living.settings, source.read_bytes()
    (tmp_path / "text").write_text("context,user_id,item_id\n")
    (tmp_path / "cut").write_bytes(content[:-100])
    (tmp_path / "flipped").write_bytes(
        content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :]
    )
    invalid = pa.array([b"\xff\xfe"]).view(pa.string())
    table = pa.table({"context": ["feed"], "user_id": ["u"], "item_id": invalid})
    pq.write_table(table, tmp_path / "latin")
    (tmp_path / "link").symlink_to(source)
    refused: list[tuple[Path, Path, dict[str, Any], type[RecmetaError], str]] = [
        (tmp_path / "nothing", out, {}, NotFoundError, "no such file"),
        (tmp_path, out, {}, NotFoundError, "no such file"),
        (source, tmp_path, {}, InputError, "found a folder"),
        (source, source, {}, InputError, "expected another file than the one to read"),
        (source, tmp_path / "link", {}, InputError, "expected another file than the one to read"),
        (tmp_path / "text", out, {}, SchemaError, "expected Parquet, found something else"),
        (tmp_path / "cut", out, {}, SchemaError, "expected Parquet, found something else"),
        (tmp_path / "flipped", out, {}, SchemaError, "damaged after row 0"),
        (tmp_path / "latin", out, {}, SchemaError, "column item_id: expected UTF-8"),
        (source, out, {"context": "feed"}, SchemaError, "expected no column context"),
        (source, out, {"as_of": datetime(2030, 1, 1)}, InputError, "expected an instant with a zone"),  # noqa: DTZ001
        (source, out, {"as_of": living.until - timedelta(seconds=1)}, InputError, "or later"),
    ]
    for given, target, options, kind, told in refused:
        with pytest.raises(kind, match=told):
            score_file(settings, given, target, **options)
    alone = written(tmp_path / "alone.parquet", drawn_rows(living, 3).drop("context"))
    with pytest.raises(NotFoundError, match="unknown context 'nowhere'"):
        score_file(settings, alone, out, context="nowhere")
    assert out.read_text() == "what was there"
    assert source.read_bytes() == content


def test_a_store_that_does_not_answer_is_an_error_and_not_another_score(
    living: Living, tmp_path: Path
) -> None:
    source, out = written(tmp_path / "in.parquet", drawn_rows(living, 10)), tmp_path / "out.parquet"
    redis = load_settings(living.settings.workspace, stores={"online": "redis", "redis": "127.0.0.1:1,db=0"})
    with pytest.raises(RecmetaError, match="the online store does not answer: ConnectionError"):
        score_file(redis, source, out)
    assert not out.exists()
