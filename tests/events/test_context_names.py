"""Which names a context may bear, and what a preset must declare."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from recmeta.contexts import check_context_name, load_contexts
from recmeta.errors import ContextError
from recmeta.events.readers import preset


@pytest.mark.parametrize(
    "name",
    ["../x", "", "Lesen", "größe", "读", "a b", "1st", "_x", "a/b", "a\n", "x" * 4096, "a" * 64, 7, None],
    ids=lambda name: repr(name)[:12],
)
def test_a_name_that_could_not_be_a_file_everywhere_is_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(ContextError) as refusal:
        check_context_name(name)
    assert len(str(refusal.value)) < 300
    file = tmp_path / "contexts.yaml"
    body = {"positives": ["A"], "negatives": {"explicit": {"events": ["B"]}}}
    file.write_text(yaml.safe_dump({"version": 1, "contexts": {name: body}}, allow_unicode=True))
    with pytest.raises(ContextError):
        load_contexts(file)


def test_ordinary_names_pass() -> None:
    for name in ("reading", "feed_2", "a", "a" * 63):
        assert check_context_name(name) == name


def test_the_simulators_preset_is_the_repositorys_contexts_file() -> None:
    template = preset("simulator")
    assert template is not None
    assert template.read_text() == (Path(__file__).resolve().parents[2] / "contexts.yaml").read_text()


@pytest.mark.parametrize("source", ["simulator", "deskdrop", "cofacts"])
def test_each_source_brings_contexts_that_can_be_read(source: str) -> None:
    template = preset(source)
    assert template is not None
    assert load_contexts(template).names


@pytest.mark.parametrize("source", ["generic", "../deskdrop", "nothing"])
def test_other_sources_bring_none(source: str) -> None:
    assert preset(source) is None
