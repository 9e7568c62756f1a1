"""One more context in a person's contexts.yaml: everything that was there stays, or nothing is written."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from recmeta.contexts import (
    Context,
    ExplicitNegatives,
    ExposureNegatives,
    ImpressionNegatives,
    Negatives,
    SampledNegatives,
    load_contexts,
)
from recmeta.contexts_file import declare
from recmeta.errors import ContextError, NotFoundError

READING = "reading:\n    positives: [READ]\n    negatives:\n      sample: {}"
PLAIN = f"version: 1\ncontexts:\n  {READING}\n"


def newsletter(negatives: Negatives | None = None) -> Context:
    return Context(
        name="newsletter",
        description='A surface: "new", it\'s said # and ünïcode.',
        positives=["NEWSLETTER"],
        negatives=negatives or Negatives(exposure=ExposureNegatives(context="reading")),
        columns="roles",
        features=["reading"],
    )


def written(folder: Path, text: str) -> Path:
    path = folder / "contexts.yaml"
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        f"# Ours.\nversion: 1\n\ncontexts: # all\n  # the first\n  {READING} # no more\n\n# The end.\n",
        f"contexts:\n  {READING}\nversion: 1\n",
        f"contexts:\n  {READING}\nsource:\n  columns: {{user_id: u, item_id: i, event_type: e,\n"
        "            event_timestamp: t}\n",
        "contexts:\n    reading: {positives: [READ],\n       negatives: {sample: {}}}\n    # last words\n",
        "contexts:\n  reading:\n    positives:\n    - READ\n    negatives:\n      sample:\n"
        "        per_positive: 4\n  # and no more\nversion: 1\n",
        "contexts:\n  reading:\n    positives: [READ]\n    negatives: {sample: {}}\n    description: |\n"
        "      A person\n      reads.\n\nversion: 1\n",
        "contexts:\n  reading:\n    positives: [READ]\n    negatives: {sample: {}}\n    description: >-\n"
        "      A person\n      reads.\n",
        "contexts:\n  reading:\n    positives: [READ]\n    negatives: {sample: {}}\n    description: A\n"
        "      person reads.\nversion: 1\n",
        f"---\ncontexts:\n  {READING}\n...\n",
    ],
)
def test_a_context_is_appended_and_every_line_that_was_there_stays(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    before = load_contexts(path)
    assert declare(path, newsletter())
    after = load_contexts(path)
    assert after.contexts == {**before.contexts, "newsletter": newsletter()}
    assert after.source == before.source
    left = path.read_bytes().decode().splitlines()
    for line in text.splitlines():
        left.remove(line)
    assert left[0].strip() == "newsletter:"
    assert ("\r\n" in text) == ("\r\n" in path.read_bytes().decode())


@pytest.mark.parametrize(
    "negatives",
    [
        Negatives(sample=SampledNegatives(per_positive=8, alive_within=timedelta(hours=36))),
        Negatives(explicit=ExplicitNegatives(events=["NO_NEWSLETTER"])),
        Negatives(impressions=ImpressionNegatives(events=["SHOWN"], within=timedelta(minutes=90))),
        Negatives(exposure=ExposureNegatives(context="reading", within=timedelta(seconds=61))),
        Negatives(exposure=ExposureNegatives(context="reading", within=timedelta(microseconds=1500))),
    ],
)
def test_each_kind_of_negatives_is_read_back_as_it_was(tmp_path: Path, negatives: Negatives) -> None:
    path = written(tmp_path, PLAIN)
    declare(path, newsletter(negatives))
    assert load_contexts(path)["newsletter"] == newsletter(negatives)


def test_the_same_again_changes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    assert declare(path, newsletter())
    once = path.read_bytes()
    assert not declare(path, newsletter())
    assert path.read_bytes() == once


def test_a_context_of_that_name_that_is_declared_otherwise_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, PLAIN)
    declare(path, newsletter())
    once = path.read_bytes()
    with pytest.raises(ContextError, match="declared otherwise"):
        declare(path, newsletter(Negatives(sample=SampledNegatives())))
    assert path.read_bytes() == once


@pytest.mark.parametrize(
    "text",
    [
        "{version: 1, contexts: {reading: {positives: [READ], negatives: {sample: {}}}}}\n",
        "contexts: {reading: {positives: [READ], negatives: {sample: {}}}}\n",
    ],
)
def test_where_nothing_can_be_appended_a_person_is_told_what_to_write(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ContextError, match=r"by hand: \{newsletter: \{") as refused:
        declare(path, newsletter())
    assert str(path) in str(refused.value)
    assert path.read_bytes().decode() == text


def test_what_a_person_is_told_to_write_is_the_context(tmp_path: Path) -> None:
    path = written(tmp_path, "contexts: {reading: {positives: [READ], negatives: {sample: {}}}}\n")
    with pytest.raises(ContextError) as refused:
        declare(path, newsletter())
    told = str(refused.value).partition("by hand: ")[2]
    path.write_text(f"contexts:\n  {READING}\n  {told[1:-1]}\n")
    assert load_contexts(path)["newsletter"] == newsletter()


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        declare(tmp_path / "contexts.yaml", newsletter())
    assert not list(tmp_path.iterdir())
