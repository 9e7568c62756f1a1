"""A handful of interactions of a surface that the product never had: read, judged, declared, labelled.

Nothing of the file is silently dropped: a row that breaks a rule refuses the whole file, by the rule's
name; what was read and counts for less than it seems is said in a warning. This module reads the log
and the file; it must never write anything, or know a feature.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from recmeta.contexts import (
    Context,
    Contexts,
    ExplicitNegatives,
    ExposureNegatives,
    Negatives,
    SampledNegatives,
    check_context_name,
)
from recmeta.errors import ContextError, InputError, NotFoundError, SchemaError
from recmeta.events.labels import label_rows
from recmeta.events.ledger import Interval
from recmeta.events.readers import _given, _instants, _numbers, _read_table, _text
from recmeta.events.schema import INTERACTION_SCHEMA, known_timestamp
from recmeta.events.validation import judge

REQUIRED = ("user_id", "item_id", "event_timestamp")
OPTIONAL = ("label", "created_timestamp", "weight", "event_id")

WITHIN = timedelta(days=3)
"""How long after an exposure an engagement counts, where nobody says: as the surfaces of Deskdrop have it."""

LONGEST_WITHIN = timedelta(days=365)
"""A longer outcome window would leave hardly an exposure whose outcome is known."""

SAMPLED = SampledNegatives(per_positive=8, alive_within=timedelta(days=14))
"""Negatives where only engagements are known; more for each positive than a nightly context draws, because
here positives are few and draws are cheap."""

ANCHORS_PER_POSITIVE = 50
"""Exposures without engagement that are kept for each positive: more of them say nothing new of a handful
of positives, and all of a log would make bringing up a surface as slow as a night."""

_PAIR = ("user_id", "item_id")
_SAME = (*_PAIR, "event_timestamp")
_ORDER = ("known_timestamp", "event_id")


@dataclass(frozen=True)
class NewSurface:
    """What a file says of a new surface."""

    interactions: pl.DataFrame
    """As `Interaction` has them, in the order in which they became known; ``context`` is the new name."""
    declaration: Context
    warnings: tuple[str, ...]
    """What a person should know before the surface serves, one sentence each."""
    known_users: int
    """Of the distinct users, how many the log knows."""
    known_items: int
    """Of the distinct items, how many the log knows."""


def read_new_surface(
    path: Path,
    name: str,
    contexts: Contexts,
    events: pl.LazyFrame,
    span: Interval,
    *,
    now: datetime,
    exposure: str | None = None,
    within: timedelta | None = None,
) -> NewSurface:
    """Read the first interactions of a surface, and declare it.

    The file is Parquet, CSV or JSONL (the latter two also .gz) with the columns `REQUIRED` and any of
    `OPTIONAL`. Instants are ISO 8601 with their zone, or seconds since 1970. Without ``label`` each row
    is an engagement. Negatives come from the file where it has rows with label 0, else from ``exposure``
    where that is given, else they are sampled.

    Args:
        path: the file.
        name: of the new surface; its events are called by it in capitals.
        contexts: as declared so far; leave a surface out to bring it up anew.
        events: the whole log, as `scan_events` gives it.
        span: of the log (`event_span`).
        now: the instant after which nothing can have happened.
        exposure: the context in which people meet what they may engage with on the new surface.
        within: how long after the exposure an engagement counts; `WITHIN` where left out.

    Raises:
        ContextError: a name that cannot be used or is taken, or an unknown ``exposure``.
        NotFoundError: no such file.
        SchemaError: a file that cannot be read, without rows, with missing, unknown or wrongly typed columns.
        InputError: refused rows, contradictions, no engagement at all, or nobody and nothing that the log
            knows; each with a count and the first row's number.
    """
    _check_name(name, contexts)
    window = _outcome_window(name, contexts, exposure, within)
    arrivals = _read(path, name)
    rows, duplicates = _judged(arrivals, path, name, span, now)
    positives = int(rows["label"].sum())
    if positives == 0:
        raise InputError(
            f"{path}: expected at least one engagement (label 1), found {rows.height} rows of label 0: "
            "what people refuse does not say what they want"
        )
    explicit = positives < rows.height
    negatives = _negatives(explicit, name, exposure, window)
    declaration = Context(
        name=name,
        description=f"A surface brought up from {positives} engagement{'s' if positives > 1 else ''}.",
        columns="roles",
        positives=[_event_type(name)],
        negatives=negatives,
        features=list(contexts.names),
    )
    interactions = rows.sort(_ORDER).select(INTERACTION_SCHEMA.names())
    users, known_users = _known(interactions, events, "user_id")
    items, known_items = _known(interactions, events, "item_id")
    if known_users == 0 and known_items == 0:
        raise InputError(
            f"{path}: expected users or items that the log knows, found {users} users and {items} items that "
            f"it never saw (such as user {interactions['user_id'][0]!r} and item "
            f"{interactions['item_id'][0]!r}): nothing is known to build on; are these the ids of the log?"
        )
    warnings = [duplicates] if duplicates else []
    if known_users == 0:
        warnings.append(f"none of the {users} users is in the log: what is learnt is of the items alone")
    if known_items == 0:
        warnings.append(f"none of the {items} items is in the log: what is learnt is of the users alone")
    if positives == 1:
        warnings.append(
            "one engagement is too few to learn from or to check against: the surface is served zero-shot"
        )
    if explicit and exposure is not None:
        warnings.append(f"exposure {exposure} is not used: the file's rows of label 0 are the negatives")
    late = interactions.filter(pl.col("event_timestamp") >= span.end)
    if late.height:
        warnings.append(
            f"{late.height} of {interactions.height} rows lie after the log's end ({_shown(span.end)}): "
            "they see what was known then"
        )
    labels = label_new_surface(with_surface(contexts, declaration), events, name, interactions)
    without = positives_without_row(interactions, labels)
    # One engagement is served zero-shot whatever its exposure; several without any are a wrong exposure.
    if without.height == positives > 1 and negatives.exposure is not None:
        raise InputError(
            f"{path}: expected engagements that follow an exposure in {exposure}, found none of {positives} "
            f"within {_long(window)} of one; give a longer one, another context, or none to sample negatives"
        )
    if without.height:
        reason = (
            f"follow no first exposure in {exposure} within {_long(window)}"
            if negatives.exposure is not None
            else f"are of items without any event in the {SAMPLED.alive_within.days} days before"
        )
        warnings.append(f"{without.height} of {positives} engagements {reason}: nothing is learnt from them")
    return NewSurface(interactions, declaration, tuple(warnings), known_users, known_items)


def with_surface(contexts: Contexts, declaration: Context) -> Contexts:
    """The contexts with one more, or with that one declared anew."""
    return Contexts(
        version=contexts.version,
        contexts={**contexts.contexts, declaration.name: declaration},
        source=contexts.source,
    )


def label_new_surface(
    contexts: Contexts, events: pl.LazyFrame, name: str, interactions: pl.DataFrame, *, seed: int = 0
) -> pl.DataFrame:
    """The labelled rows of a surface whose whole log is ``interactions``, as `label_rows` defines them.

    Exposures count from the outcome window before the first interaction on, up to the last one. Of those
    without engagement at most `ANCHORS_PER_POSITIVE` for each positive are kept, chosen by a hash of user,
    item and ``seed``; their weights are raised so that together they weigh what all did, and base rates
    stay right.

    Args:
        contexts: with the new surface.
        events: the log of the workspace; what it holds of the surface itself is left aside.
        name: of the surface.
        interactions: of the surface, as `Interaction` has them; at least one.
        seed: of the draws.

    Raises:
        ContextError: ``name`` is not declared.
        InputError: no interaction.
    """
    if interactions.is_empty():
        raise InputError(f"context {name}: expected at least one interaction, found none")
    window = contexts[name].outcome_window
    known = interactions.select(known_timestamp()).to_series()
    first, last = known.min(), known.max()
    assert isinstance(first, datetime) and isinstance(last, datetime)  # noqa: S101  (there is a row)
    others = events.filter(pl.col("context") != name).select(INTERACTION_SCHEMA.names())
    log = pl.concat([others, interactions.lazy().select(INTERACTION_SCHEMA.names())])
    interval = Interval(first - window, last + timedelta(microseconds=1))
    rows = label_rows(contexts, log, name, interval, seed=seed)
    if contexts[name].negatives.exposure is None:
        return rows
    return _fewer_anchors(rows, seed)


def positives_without_row(interactions: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """The engagements whose user and item make no labelled row with label 1."""
    engaged = labels.filter(pl.col("label") == 1).select(_PAIR)
    return interactions.filter(pl.col("label") == 1).join(
        engaged, on=_PAIR, how="anti", maintain_order="left"
    )


# The declaration ----------------------------------------------------------------------------------


def _event_type(name: str, *, refused: bool = False) -> str:
    return f"NO_{name.upper()}" if refused else name.upper()


def _check_name(name: str, contexts: Contexts) -> None:
    for taken in contexts.names:
        if isinstance(name, str) and name.strip().casefold() == taken:
            how = "exists" if name == taken else f"differs from {taken!r} only in case or blanks"
            raise ContextError(f"expected the name of a new context, found {name!r}, which {how}")
    check_context_name(name)
    for refused in (False, True):
        event_type = _event_type(name, refused=refused)
        owners = [
            f"context {context.name}"
            for context in contexts.declared()
            if event_type in (*context.positives, *context.negative_events)
        ]
        if contexts.source is not None and event_type in contexts.source.ignore:
            owners.append("source.ignore")
        if owners:
            raise ContextError(
                f"expected a name whose events {event_type} are nobody's, found {name!r}: in contexts.yaml "
                f"they belong to {', '.join(owners)}"
            )


def _outcome_window(
    name: str, contexts: Contexts, exposure: str | None, within: timedelta | None
) -> timedelta:
    if exposure is None:
        if within is not None:
            raise InputError(f"within needs an exposure, found {within} and no exposure")
        return WITHIN
    if exposure == name:
        raise ContextError(f"expected the exposure of {name!r} in another context, found itself")
    _ = contexts[exposure]
    window = WITHIN if within is None else within
    if not timedelta(0) < window <= LONGEST_WITHIN:
        raise InputError(
            f"within: expected more than none and at most {LONGEST_WITHIN.days} days, found {window}"
        )
    return window


def _negatives(explicit: bool, name: str, exposure: str | None, window: timedelta) -> Negatives:
    if explicit:
        return Negatives(explicit=ExplicitNegatives(events=[_event_type(name, refused=True)]))
    if exposure is not None:
        return Negatives(exposure=ExposureNegatives(context=exposure, within=window))
    return Negatives(sample=SAMPLED)


# The file -----------------------------------------------------------------------------------------


def _read(path: Path, name: str) -> pl.DataFrame:
    """The raw rows, as `readers` has them; an ``event_type`` that is neither of the surface's is no label."""
    table = _unpacked(path)
    _check_columns([column for column in table.columns if column not in ("row", "file")], path)
    parts = {column: _text(table, path, column) for column in ("user_id", "item_id")}
    parts["event_timestamp"] = _zoned(table, path, "event_timestamp")
    if "created_timestamp" in table.columns and _given(table, "created_timestamp").any():
        created = _zoned(table, path, "created_timestamp")
        given = _given(table, "created_timestamp")
        parts["created_timestamp"] = created.zip_with(given, parts["event_timestamp"])
    if "event_id" in table.columns and table["event_id"].dtype != pl.Null:
        parts["event_id"] = _text(table, path, "event_id")
    if "weight" in table.columns:
        parts["weight"] = _numbers(table, path, "weight")
    parts["event_type"] = _event_types(table, path, name)
    return table.select("row", "file", *(part.alias(field) for field, part in parts.items()))


def _unpacked(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    if not path.name.lower().endswith((".jsonl.gz", ".ndjson.gz")):
        return _read_table(path)
    with TemporaryDirectory() as folder:
        plain = Path(folder) / path.name[: -len(".gz")]
        try:
            plain.write_bytes(gzip.decompress(path.read_bytes()))
            return _read_table(plain)
        except (OSError, EOFError, zlib.error) as error:
            raise SchemaError(f"{path}: the file cannot be read, is it whole? ({error})") from error
        except SchemaError as error:
            raise SchemaError(str(error).replace(str(plain), str(path))) from error


def _check_columns(found: Sequence[str], path: Path) -> None:
    absent = [column for column in REQUIRED if column not in found]
    unknown = [column for column in found if column not in (*REQUIRED, *OPTIONAL)]
    if not absent and not unknown:
        return
    free = [column for column in (*REQUIRED, *OPTIONAL) if column not in found]
    faults = [f"missing column {', '.join(absent)}"] if absent else []
    if unknown:
        faults.append("unknown column " + ", ".join(_with_nearest(column, free) for column in unknown[:20]))
    raise SchemaError(
        f"{path}: expected columns {', '.join(REQUIRED)} and, where known, {', '.join(OPTIONAL)}; "
        + "; ".join(faults)
    )


def _with_nearest(column: str, free: Sequence[str]) -> str:
    near = difflib.get_close_matches(column.strip().lower(), free, n=1, cutoff=0.5)
    return f"{column[:80]!r}" + (f" (is it {near[0]}?)" if near else "")


def _zoned(table: pl.DataFrame, path: Path, name: str) -> pl.Series:
    try:
        return _instants(table, path, name)
    except SchemaError:
        _instants(table, path, name, naive_is_utc=True)  # raises the same where the zone is not at fault
        raise SchemaError(
            f"{path}: column {name}: expected instants with a time zone, found stamps without one; write "
            "them as 2026-01-31T12:00:00Z, or as seconds since 1970"
        ) from None


def _event_types(table: pl.DataFrame, path: Path, name: str) -> pl.Series:
    if "label" not in table.columns:
        return pl.Series("event_type", [_event_type(name)] * table.height, dtype=pl.String)
    column = table.get_column("label")
    labels = _numbers(
        table.with_columns(column.cast(pl.UInt8)) if column.dtype == pl.Boolean else table, path, "label"
    )
    return pl.select(
        pl.when(labels == 1)
        .then(pl.lit(_event_type(name)))
        .when(labels == 0)
        .then(pl.lit(_event_type(name, refused=True)))
        .alias("event_type")
    ).to_series()


# The judgement ------------------------------------------------------------------------------------


def _judged(
    arrivals: pl.DataFrame, path: Path, name: str, span: Interval, now: datetime
) -> tuple[pl.DataFrame, str | None]:
    """The interactions, each once, with their ``known_timestamp``; and what to say of repeated ones."""
    surface = Context(
        name=name,
        positives=[_event_type(name)],
        negatives=Negatives(explicit=ExplicitNegatives(events=[_event_type(name, refused=True)])),
    )
    judgement = judge(arrivals, Contexts(contexts={name: surface}), now.astimezone(UTC))
    accepted = judgement.accepted
    early = pl.col("event_timestamp") < span.start
    refused = pl.concat(
        [
            judgement.refused.select(pl.col("rule").replace("unknown_event_type", "label_not_0_or_1"), "row"),
            accepted.filter(early).select(pl.lit("before_the_log").alias("rule"), "row"),
        ]
    )
    if refused.height:
        rules = refused.group_by("rule").agg(pl.len(), pl.col("row").min()).sort("row", "rule")
        listed = "; ".join(
            f"{rule}: {count} row{'s' if count > 1 else ''}, first row {first}"
            for rule, count, first in rules.iter_rows()
        )
        raise InputError(
            f"{path}: expected every row to be usable, found {refused.height} of {arrivals.height} that are "
            f"not, so nothing was taken: {listed} (the log starts {_shown(span.start)}, now is {_shown(now)})"
        )
    return _each_once(accepted.with_columns(known_timestamp()), path)


def _each_once(rows: pl.DataFrame, path: Path) -> tuple[pl.DataFrame, str | None]:
    repeats = rows.group_by(_SAME).agg(pl.len(), pl.col("row").min(), labels=pl.col("label").n_unique())
    torn = repeats.filter(pl.col("labels") > 1).sort("row")
    if torn.height:
        raise InputError(
            f"{path}: expected one label for a user, an item and an instant, found 0 and 1 for "
            f"{torn.height} of them; first row {torn['row'][0]}: user {torn['user_id'][0]!r}, item "
            f"{torn['item_id'][0]!r}, {_shown(torn['event_timestamp'][0])}"
        )
    once = rows.sort("known_timestamp", "row").unique(_SAME, keep="first", maintain_order=True)
    shared = once.filter(pl.col("event_id").is_duplicated()).sort("row")
    if shared.height:
        raise InputError(
            f"{path}: expected each event_id once, found {shared['event_id'].n_unique()} that name several "
            f"interactions; first row {shared['row'][0]}: {shared['event_id'][0][:80]!r}"
        )
    again = rows.height - once.height
    if not again:
        return once, None
    first = rows.join(once.select("row"), on="row", how="anti")["row"].sort()[0]
    return once, (
        f"{again} of {rows.height} rows repeat another row's user, item and instant: counted once "
        f"(first row {first})"
    )


def _known(interactions: pl.DataFrame, events: pl.LazyFrame, column: str) -> tuple[int, int]:
    """How many distinct ids there are, and how many of them the log knows."""
    ids = interactions.select(pl.col(column).unique())
    known = events.select(column).join(ids.lazy(), on=column, how="semi").select(pl.col(column).n_unique())
    return ids.height, int(known.collect().item())


def _long(duration: timedelta) -> str:
    whole_days = duration % timedelta(days=1) == timedelta(0)
    return f"{duration / timedelta(days=1):g}d" if whole_days else f"{duration / timedelta(hours=1):g}h"


def _shown(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# Anchors ------------------------------------------------------------------------------------------


def _fewer_anchors(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Keep all positives and a fixed choice of negatives that weighs as much as all of them."""
    negative = rows["label"] == 0
    total, positives = int(negative.sum()), rows.height - int(negative.sum())
    wanted = ANCHORS_PER_POSITIVE * max(positives, 1)
    if total <= wanted:
        return rows
    key = seed.to_bytes(8, "little")
    named = rows.select(pl.concat_str(*_PAIR, separator="\x1f")).to_series()
    digests = [hashlib.blake2b(pair.encode(), digest_size=8, key=key).hexdigest() for pair in named]
    place = pl.col("digest").rank("ordinal").over("label")
    kept = (pl.col("label") == 1) | (place <= wanted)
    heavier = pl.when(pl.col("label") == 0).then(pl.lit(total / wanted)).otherwise(1.0).cast(pl.Float32)
    return (
        rows.with_columns(pl.Series("digest", digests))
        .filter(kept)
        .with_columns(pl.col("weight") * heavier)
        .drop("digest")
    )
