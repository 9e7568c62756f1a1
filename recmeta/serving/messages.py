"""What clients send over HTTP, as structs: each field's type, bounds and meaning. It must never answer.

The OpenAPI document is made of these, so what stands here is what clients are told, and what is held.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from recmeta.contexts import CONTEXT_NAME
from recmeta.events.schema import LONGEST_ID

_ID = {
    "minLength": 1,
    "maxLength": LONGEST_ID,
    "pattern": "^[^\\u0000-\\u001f\\u007f-\\u009f]+$",
    "format": "recmeta-id",
}

ContextName = Annotated[
    str, Meta(description="the surface", extra_json_schema={"pattern": CONTEXT_NAME.pattern})
]
Id = Annotated[
    str,
    Meta(
        description=f"at most {LONGEST_ID} bytes of UTF-8, no control characters; an unknown one is ordinary",
        extra_json_schema=_ID,
    ),
]
Whole = Annotated[float, Meta(multiple_of=1, extra_json_schema={"type": "integer"})]
"""JSON does not tell 3.0 from 3, and many clients write it so."""

Share = Annotated[float, Meta(ge=0, le=1)]
Version = Annotated[str, Meta(description="of a bundle, as /v1/bundles lists them")]


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    """What a client sends."""


class RankRequest(_Request):
    """Which of these items first?"""

    context: ContextName
    user_id: Id
    item_ids: Annotated[list[Id], Meta(description="candidates; repeated ones count once")]
    reasons: Annotated[bool, Meta(description="also say why, item by item")] = False


class RecommendRequest(_Request):
    """Which items of the catalogue?"""

    context: ContextName
    user_id: Id
    n: Annotated[Whole, Meta(ge=1, description="how many items")] = 10
    exclude_seen: Annotated[bool, Meta(description="leave out what the user engaged with already")] = True
    diversity: Annotated[
        Share, Meta(description="how much an item loses to those of its categories above it")
    ] = 0.0
    freshness: Annotated[
        float, Meta(ge=0, le=10, description="logits that an item gains which became known just now")
    ] = 0.0


class ExplainRequest(_Request):
    """What moved this score?"""

    context: ContextName
    user_id: Id
    item_id: Id


class Event(_Request):
    """One live interaction."""

    event_id: Annotated[Id, Meta(description="of this interaction alone; a second time it is a repetition")]
    user_id: Id
    item_id: Id
    context: ContextName
    event_timestamp: Annotated[
        datetime,
        Meta(tz=True, description="when it happened: RFC 3339 with a zone, from 2000 on, not in the future"),
    ]
    label: Annotated[Whole, Meta(ge=0, le=1, description="1: engaged; 0: was shown and did not")]
    weight: Annotated[float, Meta(ge=1e-6, le=1e6)] = 1.0


class EventsRequest(_Request):
    """Live interactions: all are taken, or none."""

    events: list[Event]


class PromoteRequest(_Request):
    """Let a published bundle serve."""

    version: Version
    expected_champion: Annotated[
        str | UnsetType | None,
        Meta(description="what has to serve until then (null: nothing); left out: what serves now"),
    ] = UNSET


class RollbackRequest(_Request):
    """Let an earlier bundle serve again."""

    to: Annotated[str | None, Meta(description="left out: the champion before this one")] = None


class UserQuery(_Request):
    """Of whom."""

    user_id: Id


class OnboardQuery(_Request):
    """Which surface the uploaded interactions are of."""

    context: ContextName
    exposure: Annotated[
        str | UnsetType,
        Meta(
            description="the surface where people meet what they may engage with on the new one",
            extra_json_schema={"pattern": CONTEXT_NAME.pattern},
        ),
    ] = UNSET
    within: (
        Annotated[
            str,
            Meta(
                description="how long after that an engagement counts (12h, 3d)",
                pattern=r"^[0-9]{1,4}[smhd]$",
            ),
        ]
        | UnsetType
    ) = UNSET


class Fault(msgspec.Struct, frozen=True):
    """What was wrong."""

    type: str
    message: Annotated[str, Meta(description="what was expected, what came, and where")]


class ErrorReply(msgspec.Struct, frozen=True):
    """Any answer of 400 and above."""

    error: Fault


class Live(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"]


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """What serves."""

    status: Annotated[
        Literal["ok", "degraded"], Meta(description="degraded: a newer bundle was refused, this one stays")
    ]
    bundle: str
    until: datetime
    reason: str | UnsetType = UNSET


class UserReply(msgspec.Struct, frozen=True):
    """What somebody engaged with, the latest first."""

    user_id: str
    history: list[dict[str, Any]]


class ContextReply(msgspec.Struct, frozen=True):
    """What serves one surface, and why."""

    name: str
    description: str
    serves: str
    reason: str
    rung: Annotated[str | None, Meta(description="of an onboarded surface")]
    positives: Annotated[int | None, Meta(description="from which an onboarded surface was learnt")]
    metrics: dict[str, Any]


class ContextsReply(msgspec.Struct, frozen=True):
    """The surfaces of the bundle in force."""

    bundle: str
    until: datetime
    contexts: list[ContextReply]


class BundlesReply(msgspec.Struct, frozen=True):
    """The published bundles, the newest night first."""

    champion: str | None
    bundles: list[dict[str, Any]]


class EventsReply(msgspec.Struct, frozen=True):
    """How many interactions were new, and how many had been recorded before."""

    recorded: int
    repeated: int


class JobStarted(msgspec.Struct, frozen=True):
    """The onboarding that was begun; ask /v1/jobs/{job} how it goes."""

    job: str


class Job(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an onboarding goes."""

    state: Literal["running", "done", "failed"]
    report: Annotated[
        dict[str, Any] | UnsetType, Meta(description="as `recmeta onboard --json` writes it")
    ] = UNSET
    error: Fault | UnsetType = UNSET


class ChampionMoved(msgspec.Struct, frozen=True):
    """What serves now, and what served before."""

    champion: str
    before: str | None
