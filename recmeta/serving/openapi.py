"""The operations of the API, and the OpenAPI document made of them and of the messages' own types.

What stands here is what is routed: no operation can be without its key, its errors and an example. This
module must never answer a request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from recmeta import __version__
from recmeta.serving import messages as m
from recmeta.serving.answers import Answer, Explanation, Moved, RankedItem
from recmeta.serving.jobs import MEDIA_TYPES
from recmeta.serving.keys import Role
from recmeta.settings import ServingSettings

_JSON = "application/json"
_UNTIL = datetime(2026, 6, 30, tzinfo=UTC)
_VERSION, _BEFORE = "20260630-5f1d3c9ab0e2", "20260629-0c4e8d71f2aa"
_JOB = "00ffee4c3b2a1908"


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    name: str
    method: str
    path: str
    tells: str
    """What it is for, in a line."""
    answers: Any
    """An example of the answer. Its type is the answer's, where `answer_type` says nothing else."""
    answer_type: Any = None
    media_type: str = _JSON
    key: Role | None = "read"
    body: msgspec.Struct | None = None
    """An example of the JSON body, of the body's type."""
    query: msgspec.Struct | None = None
    """The same of the query."""
    uploads: bool = False
    status: int = 200
    refuses: tuple[int, ...] = ()
    """Statuses of its errors, beside those that its key, body or query bring along."""

    @property
    def statuses(self) -> list[int]:
        """Of all its errors."""
        found = set(self.refuses)
        if self.key is not None:
            found |= {401, 403, 429}
        if self.body is not None or self.query is not None or self.uploads:
            found.add(400)
        if self.body is not None or self.uploads:
            found |= {413, 415}
        return sorted(found)


_RECOMMEND = m.RecommendRequest("reading", "user-0001", n=3)
_ANSWER = Answer(
    context="reading",
    user_id="user-0001",
    items=(RankedItem(1, "item-0001", 0.31, ("health",), "health: 3 of the user's last 20"),),
    reason="known user, ranked with their last 20 engagements",
    bundle=_VERSION,
    serves="adapter",
    as_of=_UNTIL,
)
_EXPLANATION = Explanation(
    context="reading",
    user_id="user-0001",
    item_id="item-0001",
    bundle=_VERSION,
    serves="adapter",
    score=0.31,
    shared_score=0.27,
    parts=(Moved("your_activity", "how active you are, here and elsewhere", 0.4),),
    as_of=_UNTIL,
)

OPERATIONS = (
    Operation(
        "live", "GET", "/health/live", "Whether the process answers.", m.Live("ok"), key=None,
    ),
    Operation(
        "ready", "GET", "/health/ready", "Whether a bundle serves, and which one.",
        m.Ready("ok", _VERSION, _UNTIL), key=None, refuses=(503,),
    ),
    Operation(
        "metrics", "GET", "/metrics", "What Prometheus reads.",
        "# TYPE recmeta_requests_in_flight gauge\nrecmeta_requests_in_flight 1.0\n", str, "text/plain",
    ),
    Operation(
        "rank", "POST", "/v1/rank", "Rank given candidates for a user on a surface.",
        _ANSWER, body=m.RankRequest("reading", "user-0001", ["item-0001", "item-0002"]),
        refuses=(404, 503),
    ),
    Operation(
        "recommend", "POST", "/v1/recommend", "Recommend items of the catalogue to a user on a surface.",
        _ANSWER, body=_RECOMMEND, refuses=(404, 503),
    ),
    Operation(
        "recommend_by_query", "GET", "/v1/recommend", "The same, asked in the address.",
        _ANSWER, query=_RECOMMEND, refuses=(404, 503),
    ),
    Operation(
        "explain", "POST", "/v1/explain", "Say what moved a score.",
        _EXPLANATION, body=m.ExplainRequest("reading", "user-0001", "item-0001"), refuses=(404, 503),
    ),
    Operation(
        "user", "GET", "/v1/users", "A user's last engagements, the latest first.",
        m.UserReply("user-0001", [{"item_id": "item-0001", "categories": ["health"]}]),
        query=m.UserQuery("user-0001"), refuses=(503,),
    ),
    Operation(
        "contexts", "GET", "/v1/contexts", "The surfaces, and what serves each of them and why.",
        m.ContextsReply(
            _VERSION, _UNTIL,
            [m.ContextReply("reading", "Opening an article", "adapter", "", None, None, {"auc": 0.71})],
        ), refuses=(503,),
    ),
    Operation(
        "evidence", "GET", "/v1/evidence",
        "What holding surfaces out told of new ones: onboarding curve, audit, verdict; empty where nothing.",
        {}, dict[str, Any], refuses=(503,),
    ),
    Operation(
        "report", "GET", "/v1/report", "The latest night's report, a page.",
        "<!doctype html>...", str, "text/html", refuses=(404,),
    ),
    Operation(
        "bundles", "GET", "/v1/bundles", "The published bundles, and which one serves.",
        m.BundlesReply(
            _VERSION,
            [{"version": _VERSION, "champion": True, "promoted": ["2026-06-30T02:10:00+00:00"],
              "until": _UNTIL.isoformat(), "parent": None, "serves": {"reading": "adapter"},
              "problem": None}],
        ),
    ),
    Operation(
        "events", "POST", "/v1/events",
        "Take live interactions into the online features: the next answer reacts to them.",
        m.EventsReply(1, 0), key="admin", refuses=(404, 503),
        body=m.EventsRequest(
            [m.Event("click-1", "user-0001", "item-0001", "reading", _UNTIL, 1)]
        ),
    ),
    Operation(
        "onboard", "POST", "/v1/onboard",
        "Bring up a new surface from a file of interactions: a bundle is made, and does not serve yet.",
        m.JobStarted(_JOB), key="admin", query=m.OnboardQuery("saving", "reading", "1d"), uploads=True,
        status=202, refuses=(409,),
    ),
    Operation(
        "job", "GET", "/v1/jobs/{job}", "How an onboarding goes.",
        m.Job("done", {"context": "saving", "version": _VERSION, "rung": "stack"}), key="admin",
        refuses=(404,),
    ),
    Operation(
        "promote", "POST", "/v1/promote", "Let a published bundle serve.",
        m.ChampionMoved(_VERSION, _BEFORE), key="admin",
        body=m.PromoteRequest(_VERSION, _BEFORE), refuses=(404, 409, 503),
    ),
    Operation(
        "rollback", "POST", "/v1/rollback", "Let an earlier bundle serve again.",
        m.ChampionMoved(_BEFORE, _VERSION), key="admin", body=m.RollbackRequest(), refuses=(404, 503),
    ),
)  # fmt: skip

_REFUSALS = {
    400: ("What was sent cannot be used", "InputError", "n: expected 1 to 1000, found 0"),
    401: ("No key, or a wrong one", "KeyMissingError", "expected `Authorization: Bearer KEY`"),
    403: (
        "A read key where the admin key is needed, or, without keys, a host that is not this machine",
        "KeyTooWeakError",
        "expected the admin key, found the read key",
    ),
    404: (
        "No such context, bundle, job or report",
        "NotFoundError",
        "unknown context 'liking'; bundle 20260630-5f1d3c9ab0e2 serves reading",
    ),
    409: (
        "Another bundle was promoted, or another surface is being onboarded",
        "ConflictError",
        "expected 20260629-0c4e8d71f2aa to serve, found 20260630-5f1d3c9ab0e2, promoted meanwhile",
    ),
    413: ("Too many bytes", "TooLargeError", "body: expected at most 1048576 bytes, found more"),
    415: (
        "The content type is not the expected one",
        "MediaTypeError",
        "content-type: expected application/json, found 'text/plain'",
    ),
    429: (
        "Too many requests a second; Retry-After says when to come back",
        "TooManyRequestsError",
        "expected at most 100 requests a second; try again in 0.1 s",
    ),
    503: (
        "Nothing can serve at this moment",
        "NoChampionError",
        "no bundle was promoted yet; run `recmeta nightly`",
    ),
}
"""Of each status: what it says, and an example's type and message."""


def document(limits: ServingSettings) -> dict[str, Any]:
    """The OpenAPI document (3.1) of a server with these limits."""
    types = {id(operation): _type_of(operation) for operation in OPERATIONS}
    asked = {type(example) for op in OPERATIONS for example in (op.body, op.query) if example is not None}
    wanted = [*types.values(), *sorted(asked, key=lambda kind: kind.__name__), m.ErrorReply]
    found, components = msgspec.json.schema_components(wanted, ref_template="#/components/schemas/{name}")
    schemas = {str(kind): schema for kind, schema in zip(wanted, found, strict=True)}
    _bound(components, limits)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        answer = schemas[str(types[id(operation)])]
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(
            operation, answer, components
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "recmeta",
            "version": __version__,
            "description": "One shared user model, an adapter per surface. Whatever is sent gets an answer, "
            'or an error of the form {"error": {"type", "message"}}.',
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {str(status): _refusal(status) for status in _REFUSALS},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "from keys.json in the workspace"}
            },
        },
    }


def _type_of(operation: Operation) -> Any:
    return type(operation.answers) if operation.answer_type is None else operation.answer_type


def _bound(components: dict[str, Any], limits: ServingSettings) -> None:
    """Write the limits that settings make into the schemas of what is limited."""
    components["RankRequest"]["properties"]["item_ids"]["maxItems"] = limits.most_items
    components["RecommendRequest"]["properties"]["n"]["maximum"] = limits.most_items
    components["EventsRequest"]["properties"]["events"]["maxItems"] = limits.most_events


def _described(operation: Operation, answer: Any, components: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.tells,
        "parameters": [*_path_parameters(operation), *_query_parameters(operation, components)],
        "responses": {
            str(operation.status): {
                "description": "The answer",
                "content": {
                    operation.media_type: {
                        "schema": answer,
                        "example": msgspec.to_builtins(operation.answers),
                    }
                },
            },
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in operation.statuses},
        },
        "security": [] if operation.key is None else [{"key": []}],
    }
    if operation.key == "admin":
        told["description"] = "Needs the admin key."
    if operation.body is not None:
        schema = {"$ref": f"#/components/schemas/{type(operation.body).__name__}"}
        content: dict[str, Any] = {_JSON: {"schema": schema, "example": msgspec.to_builtins(operation.body)}}
        told["requestBody"] = {"required": True, "content": content}
    if operation.uploads:
        told["requestBody"] = {"required": True, "content": _uploads()}
    return told


def _refusal(status: int) -> dict[str, Any]:
    tells, kind, message = _REFUSALS[status]
    schema = {"$ref": f"#/components/schemas/{m.ErrorReply.__name__}"}
    example = {"error": {"type": kind, "message": message}}
    return {"description": tells, "content": {_JSON: {"schema": schema, "example": example}}}


def _uploads() -> dict[str, Any]:
    schema = {"type": "string", "format": "binary"}
    example = "user_id,item_id,event_timestamp\nuser-0001,item-0001,2026-06-29T12:00:00Z\n"
    return {
        kind: {"schema": schema, **({"example": example} if kind == "text/csv" else {})}
        for kind in MEDIA_TYPES
    }


def _path_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", operation.path):
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
            "example": _JOB,
        }


def _query_parameters(operation: Operation, components: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if operation.query is None:
        return
    schema = components[type(operation.query).__name__]
    example = msgspec.to_builtins(operation.query)
    for name, found in schema["properties"].items():
        yield {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            "schema": found,
            **({"example": example[name]} if name in example else {}),
        }
