"""A newer champion takes over between requests; one that cannot serve never does."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
import weakref
from pathlib import Path

import pytest
from conftest import Living, publish

from recmeta.artifacts import write_json
from recmeta.bundle.store import BundleStore
from recmeta.serving.champion import Champion, NoChampionError
from recmeta.serving.probes import PROBES
from recmeta.settings import load_settings


def promote(living: Living, folder: Path, seed: int) -> str:
    """Publish and promote a bundle with other weights."""
    (folder / f"files-{seed}").mkdir()
    return publish(living.settings, living.contexts, living.until, seed=seed, files=folder / f"files-{seed}")


def test_a_newer_champion_is_swapped_in_and_told(living: Living, tmp_path: Path) -> None:
    swapped: list[str] = []
    champion = Champion(living.settings, swapped=swapped.append)
    before = champion.get()
    newer = promote(living, tmp_path, 2)
    assert champion.get() is before  # asking never opens anything
    champion.look()
    assert champion.get().version == newer
    assert swapped == [living.version, newer]
    assert champion.get()._items is before._items  # the same catalogue: nothing is read again
    assert BundleStore(living.settings.bundles_folder).rollback() == living.version
    champion.look()
    assert champion.get().version == living.version


@pytest.mark.parametrize("damage", ["flipped bit", "missing file", "link", "added file", "probes", "pointer"])
def test_a_bundle_that_cannot_serve_is_refused_once_and_loudly_and_the_old_one_goes_on(
    damage: str, living: Living, tmp_path: Path
) -> None:
    told: list[tuple[str, str]] = []
    champion = Champion(living.settings, refused=lambda version, why: told.append((version, why)))
    folder = living.settings.bundles_folder / promote(living, tmp_path, 2)
    graph = next(folder.glob("units/*/graph.onnx"))
    if damage == "flipped bit":
        content = bytearray(graph.read_bytes())
        content[len(content) // 3] ^= 4
        graph.write_bytes(content)
    elif damage == "missing file":
        graph.unlink()
    elif damage == "link":
        shutil.move(graph, tmp_path / "elsewhere.onnx")
        graph.symlink_to(tmp_path / "elsewhere.onnx")
    elif damage == "added file":
        (graph.parent / "weights.bin").write_bytes(b"external data")
    elif damage == "pointer":
        (living.settings.bundles_folder / "champion.json").write_text("{")
    else:
        promote_with_other_probes(living, tmp_path)
    for _ in range(3):
        champion.look()
    assert champion.get().version == living.version
    assert champion.refused
    assert len(told) == 1 or damage == "pointer"
    assert champion.get().recommend("feed", living.reader(), 5).items


def promote_with_other_probes(living: Living, folder: Path) -> None:
    """Promote a copy of what serves that claims other scores."""
    store = BundleStore(living.settings.bundles_folder)
    bundle = store.open(living.version)
    files = folder / "copied"
    for path in bundle.manifest.files:
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.file(path), files / path)
    write_json(files / PROBES, {"feed": [1000.0] * 8})
    store.promote(store.publish(bundle.manifest, files), store.champion_version())


def test_a_good_bundle_after_a_bad_one_serves(living: Living, tmp_path: Path) -> None:
    champion = Champion(living.settings)
    folder = living.settings.bundles_folder / promote(living, tmp_path, 2)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"format_version": 1}))
    champion.look()
    assert champion.refused
    good = promote(living, tmp_path, 3)
    champion.look()
    assert (champion.get().version, champion.refused) == (good, None)


def test_without_any_champion_it_says_so_until_there_is_one(living: Living) -> None:
    pointer = living.settings.bundles_folder / "champion.json"
    content = pointer.read_bytes()
    pointer.unlink()
    champion = Champion(living.settings)
    with pytest.raises(NoChampionError, match="recmeta nightly"):
        champion.get()
    pointer.write_bytes(content)
    champion.look()
    assert champion.get().version == living.version


def test_answers_while_champions_change_are_each_of_one_bundle(living: Living, tmp_path: Path) -> None:
    settings = load_settings(living.settings.workspace, serving={"refresh_seconds": 0.02})
    champion = Champion(settings)
    other = promote(living, tmp_path, 2)
    champion.look()
    store, user = BundleStore(settings.bundles_folder), living.reader()
    now = living.until
    scores = {other: champion.get().recommend("feed", user, 5, now).items}
    store.rollback(living.version)
    champion.look()
    scores[living.version] = champion.get().recommend("feed", user, 5, now).items
    assert scores[other] != scores[living.version]
    champion.start()
    done = threading.Event()

    def keep_swapping() -> None:
        for number in range(12):
            store.rollback(other if number % 2 else living.version)
            time.sleep(0.1)
        done.set()

    threading.Thread(target=keep_swapping).start()
    seen = set()
    while not done.is_set():
        answer = champion.get().recommend("feed", user, 5, now)
        assert answer.items == scores[answer.bundle]
        seen.add(answer.bundle)
    champion.stop()
    assert seen == {other, living.version}


def test_what_reading_the_items_again_leaves_behind_is_collected(living: Living) -> None:
    champion = Champion(
        load_settings(living.settings.workspace, serving={"refresh_seconds": 0.02, "items_seconds": 0.02})
    )

    class Cycle:
        """Refers to itself, as a closed connection does."""

        def __init__(self) -> None:
            self.own = self

    left, read = [], champion.get().refresh
    thresholds = gc.get_threshold()
    gc.set_threshold(0)  # no round comes by itself

    def reading() -> None:
        read()
        left.append(weakref.ref(Cycle()))

    champion.get().refresh = reading  # type: ignore[method-assign]
    try:
        champion.start()
        deadline = time.monotonic() + 20
        while len(left) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        champion.stop()
        gc.set_threshold(*thresholds)
    assert len(left) >= 3
    assert [one() for one in left[:-1]] == [None] * (len(left) - 1)
