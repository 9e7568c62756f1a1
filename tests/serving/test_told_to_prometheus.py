"""What Prometheus reads of a server, and what the dashboard expects there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Living, publish
from http_client import serving, until, with_keys
from prometheus_client.parser import text_string_to_metric_families

from recmeta.serving.metrics import MOST_CONTEXTS, MOST_REASONS, SCORED, Metrics
from recmeta.serving.recommender import Recommender
from recmeta.serving.traces import open_traces
from recmeta.serving.watch import watch_stages

DASHBOARD = Path(__file__).resolve().parents[2] / "docs" / "grafana" / "recmeta.json"


@pytest.fixture
def client(living: Living) -> Iterator[httpx.Client]:
    with serving(with_keys(living.settings)) as made:
        yield made


def samples(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(client: httpx.Client, name: str, **labels: str) -> float:
    return samples(client)[name, frozenset(labels.items())]


def test_requests_are_counted_by_operation_and_status(client: httpx.Client) -> None:
    for number in range(3):
        client.post("/v1/recommend", json={"context": "feed", "user_id": str(number)})
    client.post("/v1/recommend", json={"context": "liking", "user_id": "u"})
    client.get("/nowhere")
    found = "recmeta_request_seconds_count"
    assert value(client, found, operation="recommend", status="2xx") == 3
    assert value(client, found, operation="recommend", status="4xx") == 1
    assert value(client, found, operation="unknown", status="4xx") == 1
    assert value(client, "recmeta_requests_in_flight") == 1


def test_an_adapter_that_a_request_waits_for_is_counted(living: Living) -> None:
    recommender, metrics = Recommender(living.settings), Metrics()
    watch_stages(recommender, metrics, open_traces(False))
    assert b"recmeta_adapters_in_memory 1.0" in metrics.exposition()
    recommender._scorer._adapters.clear()  # others made it give way
    for _ in range(2):
        recommender.rank("reading", "u", ["a", "b"])
    assert b"recmeta_adapter_loads_total 1.0" in metrics.exposition()
    assert b"recmeta_adapters_in_memory 1.0" in metrics.exposition()


def test_contexts_beyond_the_first_are_counted_together() -> None:
    metrics = Metrics()
    for number in range(MOST_CONTEXTS + 5):
        metrics.answered(f"surface_{number}", [0.5], ())
    found = re.findall(r'recmeta_score_count\{context="([^"]+)"\} ([0-9.]+)', metrics.exposition().decode())
    assert len(found) == MOST_CONTEXTS + 1
    assert ("(other)", "5.0") in found


def test_scores_are_counted_by_context_for_drift_to_be_seen(client: httpx.Client) -> None:
    answer = client.post("/v1/recommend", json={"context": "feed", "user_id": "u", "n": 5}).json()
    assert value(client, "recmeta_score_count", context="feed") == SCORED
    assert value(client, "recmeta_score_sum", context="feed") == pytest.approx(
        sum(item["score"] for item in answer["items"][:SCORED])
    )
    client.post("/v1/recommend", json={"context": "feed", "user_id": "u", "n": 50})
    assert value(client, "recmeta_score_count", context="feed") == 2 * SCORED


def test_reduced_answers_are_counted_by_why_without_what_varies(client: httpx.Client) -> None:
    client.post("/v1/recommend", json={"context": "commenting", "user_id": "u"})
    reasons = {
        dict(labels)["reason"] for name, labels in samples(client) if name == "recmeta_degraded_answers_total"
    }
    assert "the gates let nothing serve commenting" in reasons
    assert not any(re.search(r"\d", reason) for reason in reasons)


def test_reasons_cannot_fill_the_memory() -> None:
    metrics = Metrics()
    for number in range(1000):
        metrics.answered("feed", [], [chr(0x4E00 + number) * 5])
    found = re.findall(rb"^recmeta_degraded_answers_total\{", metrics.exposition(), re.MULTILINE)
    assert len(found) <= MOST_REASONS + 1


def test_the_bundle_its_age_and_every_change_are_told(
    client: httpx.Client, living: Living, tmp_path: Path
) -> None:
    assert value(client, "recmeta_bundle_info", version=living.version) == 1
    assert value(client, "recmeta_bundle_age_seconds") > 0
    (tmp_path / "files").mkdir()
    version = publish(living.settings, living.contexts, living.until, seed=2, files=tmp_path / "files")
    until(lambda: value(client, "recmeta_bundle_info", version=living.version) == 0)
    assert value(client, "recmeta_bundle_info", version=version) == 1
    assert value(client, "recmeta_bundle_reloads_total") == 1
    (tmp_path / "more").mkdir()
    bad = publish(living.settings, living.contexts, living.until, seed=3, files=tmp_path / "more")
    (living.settings.bundles_folder / bad / "catalogue.parquet").write_bytes(b"damaged")
    until(lambda: value(client, "recmeta_bundles_refused_total") == 1)
    assert value(client, "recmeta_bundle_info", version=version) == 1


def test_every_metric_of_the_dashboard_is_one_that_a_server_exposes(client: httpx.Client) -> None:
    client.post("/v1/recommend", json={"context": "commenting", "user_id": "u"})
    client.post("/v1/events", json={"events": []})
    exposed = {name for name, _ in samples(client)} | {
        family.name for family in text_string_to_metric_families(client.get("/metrics").text)
    }
    labels = {label for _, found in samples(client) for label, _ in found}
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(asked) >= 8
    for expression in asked:
        names = set(re.findall(r"recmeta_\w+", expression))
        assert names, expression
        assert names <= exposed | {f"{name}_total" for name in exposed}, expression
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert {name.strip() for name in grouped.split(",")} <= labels, expression


def test_the_dashboard_asks_for_what_is_counted_and_leaves_out_nothing() -> None:
    told = json.dumps(json.loads(DASHBOARD.read_text()))
    exposed = Metrics().exposition().decode()
    families = {family.name for family in text_string_to_metric_families(exposed)}
    assert len(families) > 10
    assert not [name for name in families if name not in told]
