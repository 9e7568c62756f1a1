"""A manifest says all that a bundle is, always in the same bytes, and refuses what does not fit together."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from bundle_samples import BANK, BANK_FILES, sample_bank, sample_manifest, stacked_manifest
from pydantic import ValidationError

from recmeta.bundle.manifest import Manifest, check_file_path
from recmeta.contexts import Contexts
from recmeta.errors import IntegrityError

NAN, INFINITY = float("nan"), float("inf")


def _changed(**values: Any) -> dict[str, Any]:
    return {**sample_manifest().model_dump(mode="json"), **values}


def test_a_manifest_is_read_as_it_was_written() -> None:
    manifest = sample_manifest()
    again = Manifest.from_bytes(manifest.to_bytes(), where="here")
    assert again == manifest
    assert again.version == manifest.version
    assert isinstance(again.declarations, Contexts)
    assert again.declarations["reading"].negatives.sample.alive_within == timedelta(days=14)


def test_the_version_is_the_nights_end_and_the_start_of_the_checksum() -> None:
    manifest = sample_manifest()
    assert manifest.version == f"20260630-{manifest.checksum[:12]}"
    assert sample_manifest(seed=1).version != manifest.version


def test_the_same_manifest_has_the_same_checksum_in_another_process_and_folder(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from bundle_samples import sample_manifest; sys.stdout.write(sample_manifest().checksum)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
    )
    assert run.stdout == sample_manifest().checksum, run.stderr


def test_the_same_instant_in_another_zone_gives_the_same_bytes() -> None:
    taipei = datetime(2026, 6, 30, 8, tzinfo=timezone(timedelta(hours=8)))
    assert sample_manifest(until=taipei).to_bytes() == sample_manifest().to_bytes()


def test_contexts_in_another_order_give_the_same_bytes() -> None:
    manifest = sample_manifest()
    turned = manifest.model_copy(update={"contexts": dict(reversed(manifest.contexts.items()))})
    assert turned.to_bytes() == manifest.to_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"units": {}}, "not among the units"),
        ({"contexts": {}}, "contexts: expected those declared"),
        ({"trained": "ffffffffffff"}, "trained: unit 'ffffffffffff' is not among"),
        ({"parent": "../../etc"}, "parent"),
        ({"until": "2026-06-30T00:00:00"}, "zone"),
        ({"format_version": 2}, "format_version"),
        ({"surprise": 1}, "surprise"),
        ({"files": {"../x": {"sha256": "0" * 64, "bytes": 1}}}, "relative path"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Manifest.model_validate(_changed(**change))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"serves": "adapter"}, "unit, adapter, calibration of network"),
        ({"serves": "trees"}, "trees, calibration of trees"),
        ({"serves": "popularity"}, "calibration of popularity"),
        ({"serves": "magic"}, "serves"),
        (
            {"serves": "popularity", "calibration": {"popularity": {"slope": 0.0, "intercept": 0}}},
            "slope above",
        ),
        ({"serves": "nothing", "calibration": {"trees": {"slope": -1.0, "intercept": 0}}}, "slope above"),
        ({"serves": "nothing", "tree_weight": 1.5}, "tree_weight"),
        ({"serves": "nothing", "adapter": "/etc/passwd"}, "relative path"),
    ],
)
def test_a_context_without_what_it_serves_is_refused(entry: dict[str, Any], said: str) -> None:
    contexts = sample_manifest().model_dump(mode="json")["contexts"]
    with pytest.raises(ValidationError, match=said):
        Manifest.model_validate(_changed(contexts={**contexts, "feed": {"reason": "", **entry}}))


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../x", "a/../b", "/a", "a//b", "a/", "./a", "a\\b", "a\0b", "manifest.json"]
)
def test_a_path_that_leaves_the_bundle_or_is_written_oddly_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        check_file_path(path)


def test_no_flipped_bit_goes_unnoticed() -> None:
    manifest = sample_manifest()
    content = manifest.to_bytes()
    for place in range(len(content)):
        for bit in {5, place % 8}:  # the fifth makes a capital of a letter
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            try:
                read = Manifest.from_bytes(bytes(damaged), where="here")
            except IntegrityError as error:
                assert str(error).startswith("here: ")
            else:
                assert read.version != manifest.version


def test_manifests_know_when_the_popularity_column_is_missing() -> None:
    features = {**sample_manifest().features.model_dump(mode="json"), "popularity": "nowhere"}
    with pytest.raises(ValidationError, match="no column"):
        Manifest.model_validate(_changed(features=features))
    assert sample_manifest().features.popularity_index == 1


def test_a_unit_gives_unknown_contexts_the_index_zero() -> None:
    unit = sample_manifest().units["0123456789ab"]
    assert [unit.context_index(name) for name in ("commenting", "reading", "elsewhere")] == [1, 3, 0]


def test_the_end_of_the_night_is_kept_in_utc() -> None:
    assert sample_manifest().until == datetime(2026, 6, 30, tzinfo=UTC)


def test_a_manifest_with_a_bank_and_a_stack_is_read_as_it_was_written() -> None:
    manifest = stacked_manifest()
    again = Manifest.from_bytes(manifest.to_bytes(), where="here")
    assert again == manifest
    assert again.contexts["newsletter"].stack is not None
    assert again.banks[BANK].width == 4


def test_the_files_of_every_bank_and_the_evidence_have_to_be_there() -> None:
    manifest = stacked_manifest().model_copy(update={"transfer": "transfer.json"})
    assert manifest.wanted_files() >= {*BANK_FILES, "transfer.json"}
    without = sample_bank().model_copy(update={"trees": {}, "role_trees": None})
    manifest = manifest.model_copy(update={"banks": {BANK: without}, "transfer": None})
    assert not any(path.startswith(("banks", "transfer")) for path in manifest.wanted_files())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": [], "means": [0], "scales": [1], "trees": {}}, "sources"),
        ({"sources": ["feed", "feed", "reading"]}, "sources: expected each once"),
        ({"means": [0.0, 0.0, 0.0]}, "means: expected 4 numbers .* found 3"),
        ({"scales": [1.0] * 5}, "scales: expected 4 numbers .* found 5"),
        ({"means": [0.0, 0.0, 0.0, NAN]}, "means"),
        ({"scales": [1.0, 1.0, INFINITY, 1.0]}, "scales"),
        ({"scales": [1.0, 0.0, 1.0, 1.0]}, "scales"),
        ({"trees": {"newsletter": "banks/x.onnx"}}, "newsletter is no source"),
        ({"role_trees": "../elsewhere"}, "relative path"),
        ({"unit": "ffffffffffff"}, "unit 'ffffffffffff' is not among"),
        (
            {"sources": ["commenting", "feed", "newsletter"], "trees": {}},
            "columns of their own, .*newsletter",
        ),
        ({"sources": ["commenting", "elsewhere", "reading"], "trees": {}}, "own, found elsewhere"),
    ],
)
def test_a_bank_that_does_not_fit_together_is_refused(change: dict[str, Any], said: str) -> None:
    given = stacked_manifest().model_dump()
    given["banks"][BANK].update(change)
    with pytest.raises(ValidationError, match=said):
        Manifest.model_validate(given)


def test_a_source_that_the_banks_network_does_not_know_is_refused() -> None:
    given = stacked_manifest().model_dump()
    given["units"]["0123456789ab"]["contexts"] = ("feed", "reading")
    with pytest.raises(ValidationError, match="knows no context commenting"):
        Manifest.model_validate(given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": [1.0, 0.0, 0.0]}, "'newsletter': expected 4 weights, .* found 3"),
        ({"weights": [1.0, 0.0, 0.0, NAN]}, "weights"),
        ({"intercept": INFINITY}, "intercept"),
        ({"bank": "ffffffffffff"}, "'newsletter': bank 'ffffffffffff' is not among"),
        ({"rung": "magic"}, "rung"),
        ({"rung": "boosted"}, "serves stack, which needs trees"),
        ({"positives": -1}, "positives"),
        ({"rows": -1}, "rows"),
    ],
)
def test_a_stack_that_does_not_fit_its_bank_is_refused(change: dict[str, Any], said: str) -> None:
    given = stacked_manifest().model_dump()
    given["contexts"]["newsletter"]["stack"].update(change)
    with pytest.raises(ValidationError, match=said):
        Manifest.model_validate(given)


def test_a_context_that_serves_a_stack_needs_one_and_the_bundles_bank_is_among_its_banks() -> None:
    given = stacked_manifest().model_dump()
    given["contexts"]["newsletter"]["stack"] = None
    with pytest.raises(ValidationError, match="serves stack, which needs stack"):
        Manifest.model_validate(given)
    with pytest.raises(ValidationError, match="bank: 'ffffffffffff' is not among"):
        Manifest.model_validate({**stacked_manifest().model_dump(), "bank": "ffffffffffff"})


@pytest.mark.parametrize(("number", "instead"), [(b"-2.0", b"-2.5"), (b"4.0", b"0.0"), (b"-0.25", b"NaN")])
def test_a_changed_number_of_a_stack_or_bank_is_noticed(number: bytes, instead: bytes) -> None:
    manifest = stacked_manifest()
    content = manifest.to_bytes()
    assert number in content
    damaged = content.replace(number, instead, 1)
    try:
        read = Manifest.from_bytes(damaged, where="here")
    except IntegrityError as error:
        assert str(error).startswith("here: ")
    else:
        assert read.version != manifest.version
