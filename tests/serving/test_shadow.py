"""A challenger scores the champion's traffic where nobody sees it, and the report compares."""

from __future__ import annotations

from pathlib import Path

from conftest import Living, publish

from recmeta.bundle.store import BundleStore
from recmeta.report.markup import joined
from recmeta.report.sections.shadow import section
from recmeta.serving.recommender import Recommender
from recmeta.serving.shadow import Shadow, compared
from recmeta.settings import Settings, load_settings


def shadowing(living: Living, version: str) -> Settings:
    serving = {"shadow": version, "shadow_share": 1.0}
    return load_settings(living.settings.workspace, serving=serving)


def test_a_challenger_is_compared_and_the_report_tells(living: Living, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    files = tmp_path / "files"
    challenger = publish(living.settings, living.contexts, living.until, seed=2, files=files)
    BundleStore(living.settings.bundles_folder).rollback(living.version)
    champion = Recommender(living.settings)
    shadow = Shadow(shadowing(living, challenger))
    shadow.start()
    for _ in range(5):
        shadow.offer(champion.recommend("feed", living.reader(), 10))
    # A list on which both agree: commenting is ranked by popularity in either bundle.
    shadow.offer(champion.recommend("commenting", "nobody", 10))
    shadow.stop()
    found = {row["context"]: row for row in compared(living.settings.shadow_folder)}
    assert found["feed"]["answers"] == 5
    assert (found["feed"]["challenger"], found["feed"]["champion"]) == (challenger, living.version)
    assert 0.0 < found["feed"]["score_gap"] < 1.0
    assert found["feed"]["same_top"] == 1.0  # it ranks the same ten items
    assert found["commenting"]["same_first"] == 1.0
    assert found["commenting"]["score_gap"] == 0.0
    told = str(joined(section(list(found.values())).body))
    assert challenger in told


def test_a_challenger_that_is_not_there_costs_nothing_but_the_comparison(living: Living) -> None:
    shadow = Shadow(shadowing(living, "20260101-0123456789ab"))
    shadow.start()
    shadow.offer(Recommender(living.settings).recommend("feed", "nobody", 3))
    shadow.stop()
    assert "no bundle" in str(shadow.problem)
    assert list(compared(living.settings.shadow_folder)) == []


def test_without_a_challenger_nothing_runs(living: Living) -> None:
    shadow = Shadow(living.settings)
    shadow.start()
    shadow.offer(Recommender(living.settings).recommend("feed", "nobody", 3))
    shadow.stop()
    assert not living.settings.shadow_folder.exists()
