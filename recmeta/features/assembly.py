"""Put counters together as the dense row that models read: one layout, offline and online.

Three blocks. *Named* columns hold each context's own counters. *Role* columns hold the same by what a
context is to the row: the target, and the mean and the peak of the others (the largest count, the
shortest time); so a surface that is new works through columns whose use was learnt on others. *Common*
columns hold rates, ages, the time of day, and whether negatives are drawn: telling what was met from what
was drawn is another task than telling what was liked from what was met. No column says which context the
row is of.

A context that was onboarded (``columns: roles``) has no named columns: its rows are made of the others'
named columns and of role columns, so that the layout stays when a surface comes. From the named columns
alone a row can be seen as of another context (`as_context`) or of a newcomer (`as_newcomer`).

This module knows numpy only: the training rows and the server call `FeatureSpace.assemble` with the same
stored counters and the same instants, and get the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from recmeta.artifacts import digest_of
from recmeta.contexts import Contexts, ExposureNegatives, SampledNegatives
from recmeta.errors import ContextError, SchemaError
from recmeta.features.counters import MICROSECONDS_PER_HOUR, advance, empty_state, split_row_time
from recmeta.features.dense_rows import Split
from recmeta.features.schema import ITEM, KINDS, USER, USER_ITEM, counter_names, duration_label, view_name

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]

NO_ROW_HOURS = 10_000.0
"""Hours since what never happened: longer than a year, so that a model can tell it from the rare."""

_SHOWN_NEVER = np.log1p(np.float32(NO_ROW_HOURS), dtype=np.float32)

RATE_WEIGHT = 5.0
"""Exposures that the prior of a rate counts for: below about five a rate says more of luck than of taste."""

RATE_PRIOR = 0.1
"""The rate of whom nothing is known. Only the order matters to a model; its bias takes up the level."""

SAMPLED = "sampled"
"""Column: 1 where the target's negatives are drawn from items that were alive, else 0."""

POPULARITY_WINDOW = timedelta(days=7)
"""Half-life of the counter that the popularity baseline ranks by: a week of fading."""


@dataclass(frozen=True)
class Block:
    """Rows of one view as stored: ``values`` f32 [n, W] (`counter_names`), ``hours`` f64 [n] since each row.

    Where there is no row, ``hours`` is NaN or negative and the values are ignored. Rows of several views have
    one axis more, the first.
    """

    values: Float32s
    hours: Float64s


@dataclass(frozen=True)
class Standing:
    """Counters of some views as they stand at an instant, [S, n, W]."""

    counters: Float32s
    shown: Float32s
    """The same as a model reads them."""

    def take(self, rows: npt.NDArray[np.int64], views: Sequence[int] | slice = slice(None)) -> Standing:
        """Some rows of some views."""
        return Standing(self.counters[views][:, rows], self.shown[views][:, rows])


def stored_block(
    values: Float32s, there: npt.NDArray[np.bool_], instants: npt.NDArray[np.int64] | int
) -> Block:
    """Make a block of stored values, with their own instants (`ROW_TIME`), as they stand at ``instants``.

    Args:
        values: [..., W + 3]; ignored where ``there`` is False.
        there: whether there is a row, [...].
        instants: microseconds since 1970, UTC, [...] or one for all, each not before its row's.
    """
    counters, stamps = split_row_time(values)
    hours = (instants - stamps) / MICROSECONDS_PER_HOUR
    return Block(counters, np.where(there, hours, np.nan))


@dataclass(frozen=True)
class _Read:
    """What rows of one context read: contexts by their number in `sources`."""

    sources: tuple[str, ...]
    views: Mapping[str, tuple[str, ...]]
    """By kind, of each source."""
    target: int
    others: list[int]
    copied: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
    """By kind: columns of a part that are counters as they are, and which, sources one after the other."""
    rates: list[tuple[int, list[tuple[int, int]]]]
    """The counter of positives, and what they are a share of: (source, counter)."""
    alike: Hashable | None
    """See `FeatureSpace.alike`."""


@dataclass(frozen=True)
class _PartLayout:
    """Where the columns of one kind stand among each other; counters by their number in a row."""

    places: npt.NDArray[np.int64]
    named: Mapping[str, tuple[slice, list[int]]]
    roles: list[int]
    hours: npt.NDArray[np.bool_]
    """Of `roles`: which are hours."""
    mean: slice
    peak: slice
    target: slice
    rates: range
    age: int
    """And seen, one further."""


class FeatureSpace:
    """The columns of a dense row, given the declared contexts and the counters' half-lives."""

    def __init__(self, contexts: Contexts, half_lives: Sequence[timedelta], history_length: int) -> None:
        self.contexts = contexts
        self.half_lives = tuple(half_lives)
        self.history_length = history_length
        self._counters = counter_names(self.half_lives)
        self._longest = duration_label(max(self.half_lives))
        nearest = min(self.half_lives, key=lambda half_life: abs(half_life - POPULARITY_WINDOW))
        self._popular = f"positives_{duration_label(nearest)}"
        self.named = contexts.named
        # Other surfaces may say no in events of their own: a newcomer's must not change the layout.
        self._negatives = any(contexts[name].negative_events for name in self.named)
        self.names = self._layout()
        self._index = {name: index for index, name in enumerate(self.names)}
        self.size = len(self.names)
        self._empty = empty_state(1, self.half_lives)[0]
        self._reads: dict[str, _Read] = {}
        self._strangers: dict[str, Float32s] = {}
        self._hours = np.array([name.startswith("hours") for name in self._counters])
        self._roles = {role: self._role_names(role) for role in ("target", "mean")}
        self._parts = {kind: self._part_layout(kind) for kind in KINDS}
        self.places = {kind: layout.places for kind, layout in self._parts.items()}
        """Where the columns stand that `part` makes, by kind, ascending."""
        self.split = Split.of_names(self.names)
        """`places`, and who asks when, with whom they ask: the instant's four columns are its last."""
        self._of_users = np.searchsorted(self.split.request, self.places[USER])
        self.digest = digest_of(
            list(self.names),
            [half_life.total_seconds() for half_life in self.half_lives],
            history_length,
            {name: contexts.feature_sources(name) for name in contexts.named},
            {name: self._exposures_of(name) for name in contexts.named},
            [NO_ROW_HOURS, RATE_WEIGHT, RATE_PRIOR],
        )

    # Layout ---------------------------------------------------------------------------------------

    def _columns(self, kind: str, *, negatives: bool) -> tuple[str, ...]:
        """Which counters of a kind become columns."""
        if kind == USER_ITEM:
            return ("positives", self._popular, "hours_since_positive")
        return tuple(name for name in self._counters if negatives or not name.startswith("negatives"))

    def _layout(self) -> tuple[str, ...]:
        names: list[str] = []
        for context in self.named:
            for kind in KINDS:
                negatives = bool(self.contexts[context].negative_events)
                names += [f"{context}:{kind}:{c}" for c in self._columns(kind, negatives=negatives)]
        for kind in KINDS:
            names += [f"target:{kind}:{c}" for c in self._columns(kind, negatives=self._negatives)]
        for role in ("mean", "peak"):
            for kind in (USER, ITEM):
                names += [f"{role}:{kind}:{c}" for c in self._columns(kind, negatives=self._negatives)]
        for kind in (USER, ITEM):
            names += [f"rate:{kind}:total", f"rate:{kind}:{self._longest}"]
        names += ["age:item", "age:user", "seen:item", "seen:user", SAMPLED]
        return (*names, "hour_sin", "hour_cos", "weekday_sin", "weekday_cos")

    def _part_layout(self, kind: str) -> _PartLayout:
        """Where `part` puts what, in its own columns, and which counters that is."""
        places: list[int] = []

        def take(prefix: str, counters: Sequence[str]) -> slice:
            places.extend(self._index[f"{prefix}:{counter}"] for counter in counters)
            return slice(len(places) - len(counters), len(places))

        def read(counters: Sequence[str]) -> list[int]:
            return [self._counters.index(counter) for counter in counters]

        named = {}
        for name in self.named:
            own = self._columns(kind, negatives=bool(self.contexts[name].negative_events))
            named[name] = (take(f"{name}:{kind}", own), read(own))
        roles = self._columns(kind, negatives=self._negatives)
        pair = kind == USER_ITEM
        target = take(f"target:{kind}", roles)
        mean, peak = (take(f"{role}:{kind}", () if pair else roles) for role in ("mean", "peak"))
        rates = take(f"rate:{kind}", () if pair else ("total", self._longest))
        age = len(places)
        if not pair:
            places += [self._index[f"age:{kind}"], self._index[f"seen:{kind}"]]
        return _PartLayout(
            places=np.array(places, dtype=np.int64),
            named=named,
            roles=read(roles),
            hours=np.array([counter.startswith("hours") for counter in roles]),
            mean=mean,
            peak=peak,
            target=target,
            rates=range(rates.start, rates.stop),
            age=age,
        )

    def popularity_column(self) -> str:
        """The column that the popularity baseline ranks by: the item's recent positives in the target."""
        return f"target:{ITEM}:{self._popular}"

    @property
    def target_columns(self) -> tuple[int, ...]:
        """Where the columns stand that hold the target's own counters and rates."""
        roles = ("target", "rate")
        return tuple(index for index, name in enumerate(self.names) if name.split(":")[0] in roles)

    @property
    def role_columns(self) -> tuple[int, ...]:
        """Where the columns stand that bear no context's name."""
        return tuple(index for index, name in enumerate(self.names) if name.split(":")[0] not in self.named)

    def nothing(self) -> Float32s:
        """What each named column shows of what never happened, [size]; zero in the other columns."""
        named = [name.partition(":") for name in self.names]
        return np.array(
            [self._nothing(rest) if context in self.named else 0.0 for context, _, rest in named],
            dtype=np.float32,
        )

    def index(self, name: str) -> int:
        """Where a column stands.

        Raises:
            SchemaError: there is no such column.
        """
        try:
            return self._index[name]
        except KeyError:
            raise SchemaError(f"expected one of {self.size} feature columns, found {name!r}") from None

    def views(self, context: str) -> tuple[str, ...]:
        """The counter views that rows of ``context`` read."""
        return tuple(
            view_name(kind, source) for source in self.contexts.feature_sources(context) for kind in KINDS
        )

    def _exposures_of(self, context: str) -> list[str]:
        """What a context's positives are a share of: counters, as 'context:counter'."""
        source = self.contexts[context].negatives.source
        if isinstance(source, ExposureNegatives):
            return [f"{source.context}:positives"]
        if isinstance(source, SampledNegatives):
            return [f"{name}:positives" for name in self.contexts.feature_sources(context)]
        return [f"{context}:positives", f"{context}:negatives"]

    # Rows -----------------------------------------------------------------------------------------

    def assemble(
        self, context: str, blocks: Mapping[str, Block], instants: npt.NDArray[np.int64]
    ) -> Float32s:
        """Make the dense rows of one context.

        Args:
            context: the target.
            blocks: by view, for each of `views`; one that is left out counts as without rows.
            instants: microseconds since 1970, UTC, [n].

        Returns:
            [n, size], finite.

        Raises:
            ContextError: ``context`` is not declared.
            SchemaError: a block whose shape is not [n, W].
        """
        dense = np.empty((len(instants), self.size), dtype=np.float32)
        for kind in KINDS:
            views = self._read_by(context).views[kind]
            dense[:, self.places[kind]] = self.part(
                kind, context, self._stacked(views, blocks, len(instants))
            )
        dense[:, self._index[SAMPLED]] = self._is_sampled(context)
        _put_time(dense[:, -4:], instants)
        return dense

    def stranger(self, context: str) -> Float32s:
        """The row of a user and an item that nobody knows, as of 1970, [size]; not to be changed."""
        row = self._strangers.get(context)
        if row is None:
            row = self._strangers[context] = self.assemble(context, {}, np.zeros(1, dtype=np.int64))[0]
        return row

    def request_rows(self, context: str, users: Block, instants: npt.NDArray[np.int64]) -> Float32s:
        """The columns at ``split.request``, of users at instants: those that `assemble` makes, to the bit.

        Args:
            context: the target.
            users: their views in each of the context's sources, [S, A].
            instants: microseconds since 1970, UTC, [A].

        Returns:
            [A, R].
        """
        return self._requests(context, self.part(USER, context, users), instants)

    def standing(self, stored: Block) -> Standing:
        """Counters of any views as they stand at their instants."""
        counters = self._advanced(stored)
        return Standing(counters, self._shown(counters))

    def of_requests(
        self, context: str, users: Standing, pairs: Standing, instants: npt.NDArray[np.int64]
    ) -> tuple[Float32s, Float32s]:
        """As `request_rows` of A users, and `part` of m pairs of one and an item, at less than their cost.

        Args:
            context: the target.
            users: their views in each of the context's sources, [S, A].
            pairs: theirs, [S, m].
            instants: of the users, microseconds since 1970, UTC, [A].

        Returns:
            [A, R] and [m, P].
        """
        own = self._columns_of(USER, context, users)
        return self._requests(context, own, instants), self._columns_of(USER_ITEM, context, pairs)

    def _requests(self, context: str, users: Float32s, instants: npt.NDArray[np.int64]) -> Float32s:
        rows = np.repeat(self.stranger(context)[None, self.split.request], len(instants), axis=0)
        rows[:, self._of_users] = users
        _put_time(rows[:, -4:], instants)
        return rows

    def part(self, kind: str, context: str, stored: Block) -> Float32s:
        """The columns at ``places[kind]``: all that a user, an item, or the pair is.

        Args:
            kind: of the views.
            context: the target.
            stored: the views of the context's sources (`Contexts.feature_sources`, in this order), [S, n].

        Returns:
            [n, len(places[kind])].
        """
        return self._columns_of(kind, context, self.standing(stored))

    def _columns_of(self, kind: str, context: str, standing: Standing) -> Float32s:
        """As `part`, of counters [S, n, W]."""
        wanted, layout = self._read_by(context), self._parts[kind]
        counters, shown = standing.counters, standing.shown
        sources, rows, width = counters.shape
        part = np.zeros((rows, len(layout.places)), dtype=np.float32)
        columns, read = wanted.copied[kind]
        part[:, columns] = shown.transpose(1, 0, 2).reshape(rows, sources * width)[:, read]
        if kind == USER_ITEM:
            return part
        others = shown[wanted.others][:, :, layout.roles]
        if not len(others):
            others = np.where(layout.hours, _SHOWN_NEVER, np.float32(0.0))[None, None, :]
        part[:, layout.mean] = others.sum(axis=0, dtype=np.float32) / np.float32(len(others))
        part[:, layout.peak] = np.where(layout.hours, others.min(axis=0), others.max(axis=0))
        for column, (hit, exposed) in zip(layout.rates, wanted.rates, strict=True):
            hits = counters[wanted.target][:, hit]
            exposures = np.zeros(rows, dtype=np.float32) if exposed else hits
            for number, counter in exposed:
                exposures += counters[number][:, counter]
            part[:, column] = _smoothed(hits, exposures)
        first = counters[:, :, -1].max(axis=0)
        part[:, layout.age] = np.log1p(np.maximum(first, 0.0))
        part[:, layout.age + 1] = first >= 0
        return part

    def alike(self, context: str) -> Hashable | None:
        """What contexts have in common whose `part` of an item is the same as long as it has no row in them.

        None: no other context's is, as this one has columns by its name.
        """
        return self._read_by(context).alike

    def item_columns(self, stored: Block) -> Float32s:
        """What items are whoever asks, and in whatever context: float32 [n, `item_width`], finite.

        For each of some contexts its counters of the item, then the item's age and whether anybody ever
        touched it.

        Args:
            stored: the items' views in these contexts, [S, n].
        """
        counters = self._advanced(stored)
        first = counters[:, :, -1].max(axis=0)
        found = np.empty((counters.shape[1], self.item_width(len(counters))), dtype=np.float32)
        found[:, :-2] = self._shown(counters).transpose(1, 0, 2).reshape(len(found), -1)
        found[:, -2] = np.log1p(np.maximum(first, 0.0))
        found[:, -1] = first >= 0
        return found

    def item_width(self, sources: int) -> int:
        """Columns that `item_columns` makes of this many sources."""
        return sources * len(self._counters) + 2

    def _read_by(self, context: str) -> _Read:
        """What rows of a context read; worked out once."""
        found = self._reads.get(context)
        if found is not None:
            return found
        sources = self.contexts.feature_sources(context)
        rates = []
        for suffix in ("", f"_{self._longest}"):
            terms = [term.split(":") for term in self._exposures_of(context)]
            exposed = [
                (sources.index(name), self._counters.index(f"{counter}{suffix}"))
                for name, counter in terms
                if name in sources
            ]
            rates.append((self._counters.index(f"positives{suffix}"), exposed))
        target = sources.index(context)
        shares = tuple(tuple((sources[at], counter) for at, counter in of if at != target) for _, of in rates)
        found = self._reads[context] = _Read(
            sources=sources,
            views={kind: tuple(view_name(kind, name) for name in sources) for kind in KINDS},
            target=target,
            others=[number for number, name in enumerate(sources) if name != context],
            copied={kind: self._copied(layout, sources, target) for kind, layout in self._parts.items()},
            rates=rates,
            alike=None if context in self.named else (tuple(n for n in sources if n != context), shares),
        )
        return found

    def _copied(
        self, layout: _PartLayout, sources: Sequence[str], target: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        taken = [(*layout.named[name], number) for number, name in enumerate(sources) if name in layout.named]
        taken.append((layout.target, layout.roles, target))
        columns = [np.arange(len(layout.places))[where] for where, _, _ in taken]
        read = [number * len(self._counters) + np.array(counters) for _, counters, number in taken]
        return np.concatenate(columns), np.concatenate(read).astype(np.int64)

    def _is_sampled(self, context: str) -> bool:
        return isinstance(self.contexts[context].negatives.source, SampledNegatives)

    def _stacked(self, views: Sequence[str], blocks: Mapping[str, Block], rows: int) -> Block:
        """Blocks of some views as one, [views, rows]."""
        values = np.zeros((len(views), rows, len(self._counters)), dtype=np.float32)
        hours = np.full((len(views), rows), -1.0)
        for number, view in enumerate(views):
            block = blocks.get(view)
            if block is None:
                continue
            if block.values.shape != values.shape[1:] or block.hours.shape != (rows,):
                raise SchemaError(
                    f"view {view}: expected values {values.shape[1:]} and hours {(rows,)}, "
                    f"found {block.values.shape} and {block.hours.shape}"
                )
            values[number], hours[number] = block.values, block.hours
        return Block(values, hours)

    def _advanced(self, stored: Block) -> Float32s:
        """Counters of some views at the rows' instants, [views, rows, W]."""
        there = stored.hours >= 0
        advanced = np.empty_like(stored.values)
        advanced[...] = self._empty
        advanced[there] = advance(stored.values[there], stored.hours[there], self.half_lives)
        return advanced

    def _shown(self, values: Float32s) -> Float32s:
        """Counters [..., W] as a model reads them: logarithms of counts and of hours."""
        never = self._hours & (values < 0)
        shown: Float32s = np.log1p(np.where(never, np.float32(NO_ROW_HOURS), values), dtype=np.float32)
        return shown

    # Rows seen otherwise --------------------------------------------------------------------------

    def as_context(self, dense: Float32s, target: str | None, *, hidden: Collection[str] = ()) -> Float32s:
        """Return rows as they would be if ``target`` were the target and ``hidden`` contexts did not exist.

        Made from the named columns alone, which any context's rows have: the same rows give the same bits
        offline and online. Named columns have the float32 of a logarithm, so that a rate may differ in its
        last bit from what `assemble` makes of the counters.

        Args:
            dense: [n, size]; not changed.
            target: a context with named columns; None: one that has no log of its own yet.
            hidden: contexts with named columns, ``target`` not among them.

        Raises:
            ContextError: ``target`` or a hidden one has no named columns.
        """
        seen = self._without(dense, hidden, target)
        for column, name in self._roles["target"]:
            source = self._index.get(f"{target}:{name}")
            seen[:, column] = self._nothing(name) if source is None else seen[:, source]
        exposures = [] if target is None else self._exposures_of(target)
        for kind in (USER, ITEM):
            for label, suffix in (("total", ""), (self._longest, f"_{self._longest}")):
                hits = self._counted(seen, f"target:{kind}:positives{suffix}")
                terms = [(context, counter) for context, counter in (term.split(":") for term in exposures)]
                read = [self._counted(seen, f"{c}:{kind}:{counter}{suffix}") for c, counter in terms]
                total = sum(read, np.zeros(len(dense), dtype=np.float32)) if read else hits
                seen[:, self._index[f"rate:{kind}:{label}"]] = _smoothed(hits, total)
        seen[:, self._index[SAMPLED]] = target is not None and self._is_sampled(target)
        return seen

    def as_newcomer(self, dense: Float32s, context: str, *, hidden: Collection[str] = ()) -> Float32s:
        """Return rows of ``context`` as rows of a context that has no columns of its own.

        Its named columns are emptied, like those of ``hidden`` contexts; what it has of its own log in
        target and rate columns stays. Rows of a context that has none stay as they are, but for ``hidden``.

        Raises:
            ContextError: a hidden context has no named columns.
        """
        gone = {*hidden, context} if context in self.named else set(hidden)
        return self._without(dense, gone, None) if gone else dense.copy()

    def with_own_log(self, dense: Float32s, context: str, blocks: Mapping[str, Block]) -> Float32s:
        """Return rows of ``context`` with other counters of its own log in target and rate columns.

        Args:
            dense: [n, size] of any context's rows; not changed.
            context: declared; it needs no named columns.
            blocks: of the context's own views, as for `assemble`; one that is left out has no rows.
        """
        seen = dense.copy()
        own = {
            kind: self._advanced(self._stacked([view_name(kind, context)], blocks, len(dense)))[0]
            for kind in KINDS
        }
        for kind, counters in own.items():
            layout = self._parts[kind]
            seen[:, layout.places[layout.target]] = self._shown(counters)[:, layout.roles]
        for kind in (USER, ITEM):
            for label, suffix in (("total", ""), (self._longest, f"_{self._longest}")):
                hits = own[kind][:, self._counters.index(f"positives{suffix}")]
                exposures = np.zeros(len(dense), dtype=np.float32)
                for name, counter in (term.split(":") for term in self._exposures_of(context)):
                    if name == context:
                        exposures += own[kind][:, self._counters.index(f"{counter}{suffix}")]
                    else:
                        exposures += self._counted(dense, f"{name}:{kind}:{counter}{suffix}")
                seen[:, self._index[f"rate:{kind}:{label}"]] = _smoothed(hits, exposures)
        seen[:, self._index[SAMPLED]] = self._is_sampled(context)
        return seen

    def _without(self, dense: Float32s, hidden: Collection[str], target: str | None) -> Float32s:
        """Rows whose named, mean, peak, age and seen columns know nothing of ``hidden`` contexts."""
        for name in (*hidden, *([] if target is None else [target])):
            if name not in self.named:
                raise ContextError(f"expected one of {', '.join(self.named)}, found {name!r}")
        seen = dense.copy()
        for column, name in enumerate(self.names):
            context, _, counter = name.partition(":")
            if context in hidden:
                seen[:, column] = self._nothing(counter)
        left = [name for name in self.named if name not in hidden]
        read = left if target is None else self.contexts.feature_sources(target)
        others = [name for name in left if name != target and name in read]
        for column, name in self._roles["mean"]:
            empty = self._nothing(name)
            shown = [
                seen[:, self._index[f"{other}:{name}"]]
                if f"{other}:{name}" in self._index
                else np.full(len(seen), empty, dtype=np.float32)
                for other in others
            ] or [np.full(len(seen), empty, dtype=np.float32)]
            seen[:, column] = np.sum(shown, axis=0, dtype=np.float32) / np.float32(len(shown))
            extreme = np.min if name.split(":")[1].startswith("hours") else np.max
            seen[:, self._index[f"peak:{name}"]] = extreme(shown, axis=0)
        for kind in (USER, ITEM):
            first = np.full(len(seen), -1.0, dtype=np.float32)
            for name in left:
                found = seen[:, self._index[f"{name}:{kind}:hours_since_first"]]
                first = np.maximum(first, np.where(found >= _SHOWN_NEVER, np.float32(-1.0), found))
            seen[:, self._index[f"age:{kind}"]] = np.maximum(first, 0.0)
            seen[:, self._index[f"seen:{kind}"]] = first >= 0
        return seen

    def _role_names(self, role: str) -> list[tuple[int, str]]:
        """Columns of a role, and their names without it: 'user:positives'."""
        parts = [(index, *name.partition(":")[::2]) for index, name in enumerate(self.names)]
        return [(index, rest) for index, first, rest in parts if first == role]

    def _nothing(self, counter: str) -> np.float32:
        """What a column of this counter ('user:positives') shows of what never happened."""
        return _SHOWN_NEVER if counter.split(":")[1].startswith("hours") else np.float32(0.0)

    def _counted(self, dense: Float32s, column: str) -> Float32s:
        """The counter behind a column; nothing of a context without such a column."""
        place = self._index.get(column)
        if place is None:
            return np.zeros(len(dense), dtype=np.float32)
        counted: Float32s = np.expm1(dense[:, place], dtype=np.float32)
        return counted


def _smoothed(hits: Float32s, exposures: Float32s) -> Float32s:
    smoothed: Float32s = (hits + RATE_WEIGHT * RATE_PRIOR) / (exposures + RATE_WEIGHT)
    return smoothed


def _put_time(columns: Float32s, instants: npt.NDArray[np.int64]) -> None:
    """Hour of the day and day of the week (UTC, 1970-01-01 was a Thursday), each as a point on a circle."""
    hours = instants / MICROSECONDS_PER_HOUR
    for place, angle in ((0, hours / 24.0), (2, (hours / 24.0 + 3.0) / 7.0)):
        turned = 2.0 * np.pi * (angle - np.floor(angle))
        columns[:, place] = np.sin(turned)
        columns[:, place + 1] = np.cos(turned)
