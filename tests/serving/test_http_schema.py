"""The server is held to its own OpenAPI document: every operation, with what fits it and with what does not.

``RECMETA_CASES`` sets how many cases each operation gets of either kind; the suite takes a few.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from http_client import ADMIN, serving, with_keys
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.schemas import BaseSchema

from recmeta.errors import InputError
from recmeta.serving.answers import check_id
from recmeta.serving.jobs import Jobs
from recmeta.serving.messages import Fault, Job
from recmeta.serving.openapi import OPERATIONS, Operation
from recmeta.settings import load_settings

CASES = int(os.environ.get("RECMETA_CASES", "8"))
WITH_INPUT = [op for op in OPERATIONS if op.body or op.query or op.uploads or "{" in op.path]


def _fits(name: str) -> bool:
    try:
        check_id(name, "id")
    except InputError:
        return False
    return True


# What the document says in words: ids of at most 256 bytes, instants that were.
IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=256).filter(_fits)
INSTANTS = st.integers(951_782_400, 1_780_000_000).map(lambda second: datetime.fromtimestamp(second, UTC))
schemathesis.openapi.format("recmeta-id", IDS)
schemathesis.openapi.format("date-time", INSTANTS.map(datetime.isoformat))


@pytest.fixture(scope="module")
def schema(_built: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """What a running server says of itself; its onboardings fail at once, as what is sent is nonsense."""

    async def fails(*_: Any) -> Job:
        return Job("failed", error=Fault("InputError", "not an interaction"))

    workspace = tmp_path_factory.mktemp("schema") / "workspace"
    shutil.copytree(_built, workspace)
    with pytest.MonkeyPatch.context() as patch, serving(with_keys(load_settings(workspace))) as client:
        patch.setattr(Jobs, "_recmeta", fails)
        yield schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


def sends_what_fits(case: schemathesis.Case) -> bool:
    """Whether nothing that is wrong with a query is on the wire: its mutation was an empty value, say."""
    declared = {found["name"]: found for found in case.operation.definition.raw["parameters"]}
    sent = {name: value for name, value in (case.query or {}).items() if value not in (None, [], {})}
    missing = {name for name, found in declared.items() if found["required"]} - set(sent)
    if missing or set(sent) - set(declared):
        return False
    return all(jsonschema_rs.is_valid(declared[name]["schema"], value) for name, value in sent.items())


def check(schema: BaseSchema, operation: Operation, mode: GenerationMode, cases: int) -> None:
    """Send cases of one operation, and hold each answer to the document."""
    known = st.sampled_from(["feed", "reading", "commenting", None])

    @examples(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=schema[operation.path][operation.method].as_strategy(generation_mode=mode), context=known)
    def holds(case: schemathesis.Case, context: str | None) -> None:
        if mode is GenerationMode.POSITIVE and context is not None:  # else hardly a case would name a surface
            events = case.body.get("events", []) if isinstance(case.body, dict) else []
            for part in (case.body, case.query, *events):
                if isinstance(part, dict) and "context" in part:
                    part["context"] = context
        # The header that is missing in some cases is put back below.
        assume(mode is GenerationMode.POSITIVE or operation.query is None or not sends_what_fits(case))
        case.call_and_validate(headers={"Authorization": f"Bearer {ADMIN}"}, timeout=60)

    holds()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_fits_the_document_is_answered_as_it_says(operation: Operation, schema: BaseSchema) -> None:
    check(schema, operation, GenerationMode.POSITIVE, CASES)


@pytest.mark.parametrize("operation", WITH_INPUT, ids=lambda operation: operation.name)
def test_what_does_not_fit_the_document_is_refused_as_it_says(
    operation: Operation, schema: BaseSchema
) -> None:
    check(schema, operation, GenerationMode.NEGATIVE, CASES)


def test_every_operation_has_an_example_and_is_told_of(schema: BaseSchema) -> None:
    told = schema.raw_schema["paths"]
    assert {(path, method) for path, methods in told.items() for method in methods} == {
        (operation.path, operation.method.lower()) for operation in OPERATIONS
    }
    for operation in (operation for methods in told.values() for operation in methods.values()):
        answer = operation["responses"].get("200") or operation["responses"]["202"]
        assert all("example" in content for content in answer["content"].values())
        body = operation.get("requestBody", {"content": {}})["content"]
        assert not body or any("example" in content for content in body.values())
