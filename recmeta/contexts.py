"""contexts.yaml, validated: which surfaces exist, what counts as engagement, where negatives come from.

This module knows the declaration only; it must never read an event, a feature or a model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from recmeta.errors import ContextError, NotFoundError

CONTEXT_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}$")

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(value: Any) -> Any:
    """Turn '30m', '12h' or '14d' into a timedelta; leave anything else to pydantic."""
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*([smhd])", value.strip())):
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    return value


Duration = Annotated[timedelta, BeforeValidator(parse_duration), Field(gt=timedelta(0))]
EventTypes = Annotated[list[str], Field(min_length=1)]


class _Declaration(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SampledNegatives(_Declaration):
    """Only engagements are logged: items alive at that time, drawn by popularity, stand for the rest."""

    per_positive: int = Field(default=4, ge=1, le=100)
    alive_within: Duration = timedelta(days=14)


class ExposureNegatives(_Declaration):
    """What the user met in another context, and did not engage with here in time, is a negative."""

    context: str
    within: Duration = timedelta(days=3)


class ImpressionNegatives(_Declaration):
    """The surface logs what it showed; a showing that no engagement followed in time is a negative."""

    events: EventTypes
    within: Duration = timedelta(minutes=30)


class ExplicitNegatives(_Declaration):
    """Users say no themselves (a down-vote, a dismissal)."""

    events: EventTypes


class Negatives(_Declaration):
    """Where a context's negatives come from: exactly one of the four sources."""

    sample: SampledNegatives | None = None
    exposure: ExposureNegatives | None = None
    impressions: ImpressionNegatives | None = None
    explicit: ExplicitNegatives | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Negatives:
        given = sorted(name for name in type(self).model_fields if getattr(self, name) is not None)
        if len(given) != 1:
            raise ValueError(
                "expected exactly one of sample, exposure, impressions, explicit; "
                f"found {', '.join(given) or 'none'}"
            )
        return self

    @property
    def source(self) -> SampledNegatives | ExposureNegatives | ImpressionNegatives | ExplicitNegatives:
        """The one source that was declared."""
        source = self.sample or self.exposure or self.impressions or self.explicit
        assert source is not None  # noqa: S101  (_exactly_one holds it)
        return source


class Context(_Declaration):
    """One surface or behaviour."""

    name: str
    description: str = ""
    positives: EventTypes
    negatives: Negatives
    features: list[str] | None = Field(
        default=None,
        description="contexts whose counters this one reads; where left out, all with columns of their own",
    )
    columns: Literal["own", "roles"] = Field(
        default="own",
        description="roles: a surface that was onboarded. No column bears its name, so that its coming "
        "changes no other context's rows; its own are made of role columns. Changed to own: the next night "
        "learns the shared model anew, over columns that know the surface by name",
    )
    family: str | None = Field(
        default=None,
        pattern=CONTEXT_NAME.pattern,
        description="contexts whose labels go together (commenting follows a thread by itself) share one: "
        "evidence about new surfaces holds them out together",
    )

    @property
    def negative_events(self) -> list[str]:
        """Event types that are stored as label 0 of this context."""
        source = self.negatives.source
        if isinstance(source, ImpressionNegatives | ExplicitNegatives):
            return source.events
        return []

    @property
    def outcome_window(self) -> timedelta:
        """How long after an exposure an engagement still counts; a label is not known before that."""
        source = self.negatives.source
        return source.within if isinstance(source, ExposureNegatives | ImpressionNegatives) else timedelta(0)


class SourceColumns(_Declaration):
    """Which column of a generic file holds what."""

    user_id: str
    item_id: str
    event_type: str
    event_timestamp: str
    created_timestamp: str | None = None
    event_id: str | None = None
    weight: str | None = None
    position: str | None = None
    propensity: str | None = None
    categories: str | None = Field(default=None, description="of the item: text, or a list of texts")


class Source(_Declaration):
    """How to read a generic Parquet, CSV or JSONL log."""

    columns: SourceColumns
    timezone: Literal["UTC"] | None = Field(
        default=None, description="what time stamps without a zone mean; they are refused where left out"
    )
    timestamp_unit: Literal["s", "ms", "us"] = Field(
        default="s", description="unit of time stamps that are whole numbers since 1970"
    )
    ignore: list[str] = Field(default_factory=list, description="event types that belong to no context")


class Contexts(_Declaration):
    """All declared contexts, by name in alphabetical order, and the layout of a generic source."""

    version: Literal[1] = 1
    contexts: dict[str, Context]
    source: Source | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_contexts(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("contexts"), dict):
            named = {}
            for name, body in data["contexts"].items():
                check_context_name(name)
                named[name] = {**body, "name": name} if isinstance(body, dict) else body
            data = {**data, "contexts": dict(sorted(named.items()))}
        return data

    @model_validator(mode="after")
    def _references_hold(self) -> Contexts:
        if not self.contexts:
            raise ValueError("expected at least one context, found none")
        for context in self.contexts.values():
            namesake = self.contexts.get(context.family or context.name)
            if namesake is not None and (namesake.family or namesake.name) != (
                context.family or context.name
            ):
                raise ValueError(
                    f"context {context.name!r}: family {context.family!r} is the name of a context "
                    f"that is of another family, {namesake.family!r}"
                )
        for context in self.contexts.values():
            source = context.negatives.source
            if isinstance(source, ExposureNegatives) and (
                source.context not in self.contexts or source.context == context.name
            ):
                raise ValueError(
                    f"context {context.name!r}: negatives.exposure.context must name another declared "
                    f"context, found {source.context!r}"
                )
            for read in context.features or []:
                if read not in self.contexts:
                    raise ValueError(
                        f"context {context.name!r}: features names {read!r}, which is undeclared"
                    )
            both = set(context.positives) & set(context.negative_events)
            if both:
                raise ValueError(f"context {context.name!r}: {sorted(both)} are both positive and negative")
        return self

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All names, in alphabetical order."""
        return tuple(self.contexts)

    @cached_property
    def named(self) -> tuple[str, ...]:
        """Contexts that have columns of their own, in alphabetical order."""
        return tuple(name for name, context in self.contexts.items() if context.columns == "own")

    def families(self) -> dict[str, tuple[str, ...]]:
        """Names by label family, in alphabetical order; who is of none is a family alone, by its own name."""
        found: dict[str, list[str]] = {}
        for name, context in self.contexts.items():
            found.setdefault(context.family or name, []).append(name)
        return {family: tuple(names) for family, names in sorted(found.items())}

    def __getitem__(self, name: str) -> Context:
        """The context ``name``; `ContextError` where it is not declared."""
        check_context_name(name)
        try:
            return self.contexts[name]
        except KeyError:
            raise ContextError(f"unknown context {name!r}; declared are {', '.join(self.names)}") from None

    def declared(self) -> Iterator[Context]:
        """All contexts, in the order of their names."""
        return iter(self.contexts.values())

    def feature_sources(self, name: str) -> tuple[str, ...]:
        """The contexts whose counters context ``name`` reads, in the order of their names."""
        read = self[name].features
        return tuple(sorted({*(self.named if read is None else read), name}))


def check_context_name(name: object) -> str:
    """Return ``name`` where it may name a context.

    Raises:
        ContextError: it is no string, or does not match ``^[a-z][a-z0-9_]{0,62}$``.
    """
    if not isinstance(name, str) or not CONTEXT_NAME.fullmatch(name):
        shown = repr(name) if len(repr(name)) <= 80 else f"{repr(name)[:77]}... ({len(str(name))} characters)"
        raise ContextError(f"a context's name must match {CONTEXT_NAME.pattern}, found {shown}")
    return name


def load_contexts(path: Path) -> Contexts:
    """Read and validate a contexts.yaml.

    Raises:
        NotFoundError: no such file.
        ContextError: not YAML, or not a valid declaration; the text says which entry and why.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(
            f"no contexts are declared: {path} does not exist; `recmeta ingest` brings it along"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ContextError(f"{path}: expected YAML: {error}") from error
    try:
        return Contexts.model_validate(data)
    except ContextError as error:
        raise ContextError(f"{path}: {error}") from error
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ContextError(f"{path}: {details}") from error
