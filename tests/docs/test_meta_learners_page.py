"""The page on meta-learners is true: its example runs, and it names everything that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recmeta.meta.outer.registry import OUTER
from recmeta.meta.registry import META_LEARNERS
from recmeta.models.backbones.registry import BACKBONES

PAGE = (Path(__file__).parents[2] / "docs" / "meta_learners.md").read_text(encoding="utf-8")


def test_its_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(compile(example, "docs/meta_learners.md", "exec"), {})


@pytest.mark.parametrize("names", [META_LEARNERS, OUTER, BACKBONES])
def test_every_name_that_settings_take_is_on_it(names: dict[str, object]) -> None:
    missing = [name for name in names if f"`{name}`" not in PAGE]
    assert not missing


def test_its_links_lead_somewhere() -> None:
    linked = re.findall(r"\]\((\.\./[^)#]+)\)", PAGE)
    assert linked
    assert not [link for link in linked if not (Path(__file__).parents[2] / "docs" / link).exists()]
