"""Scores a Parquet file, a row a context, a user and an item, as the server would score them one by one.

The file is read and written in pieces, so that memory does not grow with it; what is written appears whole
or not at all. This module must never know how a score is made.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recmeta.artifacts import replacing
from recmeta.errors import InputError, NotFoundError, SchemaError
from recmeta.features.direct_online import EPOCH
from recmeta.serving.answers import check_id
from recmeta.serving.pairs import Pairs
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings

ROWS_AT_ONCE = 65_536
"""Read, scored and written together: what is known of so many users and pairs takes some 100 MB."""

CONTEXT, USER_ID, ITEM_ID, SCORE = "context", "user_id", "item_id", "score"

Progress = Callable[[str, int, int], None]


def score_file(
    settings: Settings,
    source: Path,
    target: Path,
    *,
    context: str | None = None,
    as_of: datetime | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Write the rows of ``source``, in their order and with all their columns, and the score of each.

    The bundle that scored and the instant stand in the file's metadata, as ``recmeta.bundle`` and
    ``recmeta.as_of``.

    Args:
        settings: of the workspace whose champion scores.
        source: Parquet with columns user_id, item_id and, unless ``context`` is given, context: text.
        target: Parquet to write; column ``score``, float32, in [0, 1], is the probability of engagement.
        context: of all rows.
        as_of: the instant, with a zone, whose knowledge is used; left out: the one that a request that
            arrives now is answered as of.
        progress: told of rows.

    Returns:
        What was done, JSON-able.

    Raises:
        NotFoundError: no such file, nothing was promoted yet, or a context that the bundle does not serve.
        SchemaError: ``source`` is no Parquet, or a column is missing, of another type, or one too many.
        InputError: a row without an id or with an impossible one; ``target`` is ``source``; ``as_of``
            without a zone, or before the bundle's own knowledge ends, of which only the latest is kept.
        RecmetaError: the online store does not answer.
    """
    began = time.monotonic()
    file = _opened(source, target, context)
    recommender = Recommender(settings)
    if context is not None and context not in recommender.serves:
        raise NotFoundError(f"unknown context {context!r}; {_serving(recommender)}")
    pairs = recommender.pairs(as_of)
    answered_as_of = EPOCH + timedelta(microseconds=pairs.instant)
    told = {"recmeta.bundle": recommender.version, "recmeta.as_of": answered_as_of.isoformat()}
    schema = file.schema_arrow.append(pa.field(SCORE, pa.float32(), nullable=False))
    schema = schema.with_metadata({**(schema.metadata or {}), **told})
    rows: Counter[str] = Counter()
    total = file.metadata.num_rows
    try:
        with (
            replacing(target) as temporary,
            pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
        ):
            for first, batch in _batches(file, source):
                piece = _Piece(batch, source, first, context, recommender)
                scores = piece.scores(pairs, rows)
                writer.write_batch(pa.RecordBatch.from_arrays([*batch.columns, scores], schema=schema))
                progress("rows", first + batch.num_rows, total)
    finally:
        pairs.close()
        recommender.close()
    return {
        "rows": total,
        "contexts": dict(sorted(rows.items())),
        "bundle": recommender.version,
        "as_of": answered_as_of.astimezone(UTC).isoformat(),
        "seconds": round(time.monotonic() - began, 3),
        "path": str(target),
    }


class _Piece:
    """Some rows of the file, their ids checked, each id once."""

    def __init__(
        self, batch: Any, source: Path, first: int, context: str | None, recommender: Recommender
    ) -> None:
        self._batch, self._source, self._first = batch, source, first
        self._contexts, self._context_of = [context or ""], np.zeros(batch.num_rows, dtype=np.int64)
        if context is None:
            self._contexts, self._context_of = self._codes(CONTEXT)
        for number, name in enumerate(self._contexts):
            if name not in recommender.serves:
                where = self._where(int(np.argmax(self._context_of == number)))
                raise NotFoundError(f"{where}: unknown context {name[:80]!r}; {_serving(recommender)}")
        self._users, self._user_of = self._ids(USER_ID)
        self._items, self._item_of = self._ids(ITEM_ID)

    def scores(self, pairs: Pairs, rows: Counter[str]) -> Any:
        """The score of each row, as an Arrow array; ``rows`` counts them by context."""
        found = np.empty(self._batch.num_rows, dtype=np.float32)
        for number, name in enumerate(self._contexts):
            at = np.flatnonzero(self._context_of == number)
            rows[name] += len(at)
            # A pair that stands in several rows is scored once; by user, then by item.
            key, inverse = np.unique(
                self._user_of[at] * len(self._items) + self._item_of[at], return_inverse=True
            )
            users, user_of = np.unique(key // len(self._items), return_inverse=True)
            items, item_of = np.unique(key % len(self._items), return_inverse=True)
            scores = pairs.scores(
                name,
                [self._users[user] for user in users.tolist()],
                [self._items[item] for item in items.tolist()],
                user_of,
                item_of,
            )
            found[at] = scores[inverse].astype(np.float32)
        return pa.array(found)

    def _codes(self, column: str) -> tuple[list[str], npt.NDArray[np.int64]]:
        """Each text of a column once, in the order in which they come, and which one each row has."""
        try:
            text = self._batch.column(column).cast(pa.large_string())
            text.validate(full=True)
        except pa.ArrowException as error:
            raise SchemaError(f"{self._source}, column {column}: expected UTF-8: {error}") from error
        if text.null_count:
            row = int(np.argmin(text.is_valid().to_numpy(zero_copy_only=False)))
            raise InputError(f"{self._where(row)}: {column}: expected text, found null")
        encoded = text.dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)

    def _ids(self, column: str) -> tuple[list[str], npt.NDArray[np.int64]]:
        ids, codes = self._codes(column)
        for number, found in enumerate(ids):
            try:
                check_id(found, column)
            except InputError as error:
                raise InputError(f"{self._where(int(np.argmax(codes == number)))}: {error}") from None
        return ids, codes

    def _where(self, row: int) -> str:
        return f"{self._source}, row {self._first + row} (the first is 0)"


def _opened(source: Path, target: Path, context: str | None) -> Any:
    if not source.is_file():
        raise NotFoundError(f"no such file: {source}")
    if target.is_dir():
        raise InputError(f"{target}: expected a file to write, found a folder")
    if target.exists() and target.samefile(source):
        raise InputError(f"{target}: expected another file than the one to read")
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{source}: expected Parquet, found something else ({error})") from error
    schema = file.schema_arrow
    for name in (USER_ID, ITEM_ID) if context is not None else (CONTEXT, USER_ID, ITEM_ID):
        if len(schema.get_all_field_indices(name)) != 1:
            hint = "; or give --context" if name == CONTEXT else ""
            raise SchemaError(f"{source}: expected one column {name}, found {', '.join(schema.names)}{hint}")
        if not _is_text(schema.field(name).type):
            raise SchemaError(f"{source}, column {name}: expected text, found {schema.field(name).type}")
    if SCORE in schema.names:
        raise SchemaError(f"{source}: expected no column {SCORE}, which is to be written")
    if context is not None and CONTEXT in schema.names:
        raise SchemaError(f"{source}: expected no column {CONTEXT}, as --context {context} is of all rows")
    return file


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _batches(file: Any, source: Path) -> Iterator[tuple[int, Any]]:
    """Pieces of a file, each after the number of its first row."""
    first, pieces = 0, file.iter_batches(batch_size=ROWS_AT_ONCE)
    while True:
        try:
            batch = next(pieces, None)
        except (pa.ArrowException, OSError) as error:
            raise SchemaError(f"{source}: damaged after row {first}: {error}") from error
        if batch is None:
            return
        yield first, batch
        first += batch.num_rows


def _serving(recommender: Recommender) -> str:
    return f"bundle {recommender.version} serves {', '.join([*recommender.serves][:20])}"
