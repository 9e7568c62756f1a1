"""The nights after: they run through with the surface, learn its rows, and keep it serving."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from onboarding_samples import NOW, UNTIL, shares, write

from recmeta.bundle.store import Bundle, BundleStore
from recmeta.errors import NotFoundError
from recmeta.features.training_rows import load_rows
from recmeta.onboarding import onboard
from recmeta.pipeline import run_night
from recmeta.serving.recommender import Recommender
from recmeta.settings import Settings, load_settings

SETTINGS = """\
[training]
max_steps = 20
check_every = 20
adapt_steps = 5

[trees]
rounds = 10

[transfer]
enabled = false

[gate]
resamples = 100
"""


@pytest.fixture(scope="module")
def after(product: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Any, Any]:
    """A workspace in which a surface came, and then a night; and the reports of both."""
    folder = tmp_path_factory.mktemp("nights") / "workspace"
    shutil.copytree(product.workspace, folder)
    (folder / "recmeta.toml").write_text(SETTINGS)
    settings = load_settings(folder)
    file = write(folder.parent / "shares.csv", shares(settings, 60))
    came = onboard(folder, "sharing", file, exposure="reading", within="1d", now=NOW)
    return settings, came, run_night(folder, UNTIL)


def champion(settings: Settings) -> Bundle:
    found = BundleStore(settings.bundles_folder).champion()
    assert found is not None
    return found


def test_the_night_learns_the_surfaces_rows_and_judges_it(after: tuple[Settings, Any, Any]) -> None:
    settings, came, night = after
    assert night["parent"] == came["version"]
    rows = load_rows(settings, "sharing")
    assert int(rows["label"].sum()) == 60
    found = night["contexts"]["sharing"]
    assert "incumbent" in found["candidates"] and "shared" in found["candidates"]


def test_the_surface_goes_on_serving_whatever_the_night_decides(after: tuple[Settings, Any, Any]) -> None:
    settings, came, night = after
    serving = champion(settings)
    assert serving.version == night["champion"]
    entry = serving.manifest.contexts["sharing"]
    if night["contexts"]["sharing"]["serves"] == "incumbent" and night["promoted"]:
        assert (entry.serves, entry.kept_from) == ("stack", came["version"])
    assert entry.serves != "nothing"
    user = shares(settings, 60)["user_id"][0]
    answer = Recommender(settings).recommend("sharing", user, 5, now=UNTIL)
    assert len(answer.items) == 5


def test_its_coming_changed_no_column_of_another_context(after: tuple[Settings, Any, Any]) -> None:
    settings, came, _ = after
    before = BundleStore(settings.bundles_folder).open(came["parent"])
    assert champion(settings).manifest.features == before.manifest.features


def test_the_same_file_again_after_the_night_changes_nothing(after: tuple[Settings, Any, Any]) -> None:
    settings, came, night = after
    again = onboard(
        settings.workspace,
        "sharing",
        settings.workspace.parent / "shares.csv",
        exposure="reading",
        within="1d",
        now=NOW,
    )
    assert again["version"] == came["version"]
    assert again["champion"] == night["champion"]


def test_on_a_night_that_held_nothing_out_no_other_surface_can_stand(
    after: tuple[Settings, Any, Any],
) -> None:
    settings, _, night = after
    with pytest.raises(NotFoundError, match=f"{night['champion']}, which has none"):
        onboard(
            settings.workspace,
            "saving",
            write(settings.workspace.parent / "other.csv", shares(settings, 12)),
            now=NOW,
        )
