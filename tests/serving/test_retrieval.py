"""Which items of a large catalogue are scored where a bundle has towers; what they score stays as it was."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Living
from tower_bundle import drawn_towers, publish_with_towers

from recmeta.bundle.store import BundleStore
from recmeta.bundle.unit import read_ids
from recmeta.errors import InputError
from recmeta.features.counters import Float32s
from recmeta.serving.approximate import ApproximateIndex
from recmeta.serving.champion import Champion
from recmeta.serving.recommender import Recommender
from recmeta.serving.retrieval import ExactIndex, Index
from recmeta.settings import Settings, load_settings

MOST = 20


def narrow(living: Living, **serving: object) -> Settings:
    """Settings with which a fraction of the 80 items is scored."""
    return load_settings(living.settings.workspace, serving={"most_candidates": MOST, **serving})


@pytest.fixture
def towered(living: Living, tmp_path: Path) -> Recommender:
    publish_with_towers(living, tmp_path / "towered")
    return Recommender(narrow(living))


def vectors(count: int, size: int = 8) -> Float32s:
    return np.random.default_rng(5).standard_normal((count, size)).astype(np.float32)


@pytest.mark.parametrize("build", [ExactIndex, ApproximateIndex])
def test_an_index_gives_as_many_as_asked_within_the_range_and_none_that_is_not_wanted(
    build: type[ExactIndex | ApproximateIndex],
) -> None:
    kept = vectors(3000)
    index: Index = build(kept)
    query = vectors(1)[0]
    without = np.argsort(-(kept[100:2000] @ query))[:7] + 100
    found = index.best(query, 100, 2000, 50, without)
    assert len(set(found.tolist())) == 50
    assert found.min() >= 100
    assert found.max() < 2000
    assert not np.isin(found, without).any()
    assert len(index.best(query, 100, 110, 50, np.array([101]))) == 9  # all that there are


def test_the_exact_index_misses_none() -> None:
    kept, query = vectors(3000), vectors(2)[1]
    without = np.array([150, 151])
    products = kept @ query
    products[without] = -np.inf
    wanted = 100 + np.argsort(-products[100:2000])[:50]
    assert set(ExactIndex(kept).best(query, 100, 2000, 50, without)) == set(wanted)


def test_the_approximate_index_finds_most_of_what_the_exact_one_finds() -> None:
    kept = vectors(20_000) @ vectors(8, 32)
    exact, near = ExactIndex(kept), ApproximateIndex(kept)
    shares = []
    for query in kept[::1000]:
        nothing = np.array([], dtype=np.int64)
        wanted = exact.best(query, 0, len(kept), 500, nothing)
        shares.append(np.isin(wanted, near.best(query, 0, len(kept), 500, nothing)).mean())
    assert np.mean(shares) > 0.8


def test_what_is_scored_are_the_latest_and_the_largest_products_among_what_is_alive(
    living: Living, towered: Recommender, now: datetime
) -> None:
    user = living.reader()
    alive = 60
    assert towered._retrieval is not None
    places = towered._candidates("feed", user, alive, now, False, without_seen=True)
    assert len(places) == MOST
    assert places.tolist() == sorted(set(places.tolist()))
    assert places.max() < alive
    assert places[:5].tolist() == [0, 1, 2, 3, 4]
    index = towered._retrieval._index
    assert isinstance(index, ExactIndex)
    history, row = towered._knowledge.user("feed", user, now, ended=False)
    products = index._vectors @ towered._retrieval._query("feed", user, history, row)
    seen = towered._catalogue.places(history)
    free = [place for place in range(5, alive) if place not in set(seen.tolist())]
    wanted = sorted(free, key=lambda place: -products[place])[: MOST - 5]
    assert places[5:].tolist() == sorted(wanted)


def test_vectors_and_queries_are_those_of_the_towers(
    living: Living, towered: Recommender, now: datetime
) -> None:
    retrieval, catalogue = towered._retrieval, towered._catalogue
    assert retrieval is not None
    manifest, instant = towered.manifest, int(now.timestamp()) * 1_000_000
    towers, (unit,) = drawn_towers(manifest), manifest.units
    folder = living.settings.bundles_folder / towered.version / "units" / unit
    codes = {
        name: {found: number for number, found in enumerate(read_ids(folder / f"{name}.txt"), 1)}
        for name in ("users", "items", "categories")
    }
    retrieval.encode(towered._items, instant)
    places = np.arange(len(catalogue))
    dense = towered._items.columns_of_all(manifest.declarations.names, places, instant)
    about = torch.zeros(len(places), 4, dtype=torch.int64)
    for place, of in enumerate(catalogue.categories):
        about[place, : len(of)] = torch.tensor([codes["categories"][name] for name in of])
    items = torch.tensor([codes["items"].get(name, 0) for name in catalogue.ids])
    user = living.reader()
    history = [str(found["item_id"]) for found in towered.history(user)]
    past = torch.zeros(1, manifest.features.history_length, dtype=torch.int64)
    past[0, : len(history)] = torch.tensor([codes["items"].get(name, 0) for name in history])
    request = np.random.default_rng(0).random(len(towered._space.split.request), dtype=np.float32)
    columns = torch.from_numpy(request[None])
    who, where = (
        torch.tensor([codes["users"][user]]),
        torch.tensor([manifest.units[unit].context_index("feed")]),
    )
    with torch.no_grad():
        vectors = towers.item_vectors(torch.from_numpy(dense), items, about).numpy()
        query = towers.queries(columns, who, past, where).numpy()[0]
    assert isinstance(retrieval._index, ExactIndex)
    np.testing.assert_allclose(retrieval._index._vectors, vectors, atol=2e-5)
    np.testing.assert_allclose(retrieval._query("feed", user, history, request), query, atol=2e-5)


def test_every_score_is_the_one_that_rank_gives(living: Living, towered: Recommender, now: datetime) -> None:
    for context in ("feed", "reading", "commenting"):
        listed = towered.recommend(context, living.reader(), 10, now).items
        ranked = towered.rank(context, living.reader(), [item.item_id for item in listed], now).items
        assert [item.item_id for item in ranked] == [item.item_id for item in listed]
        assert [item.score for item in ranked] == pytest.approx([item.score for item in listed], abs=1e-6)


def test_items_are_shown_that_the_latest_would_never_include(
    living: Living, towered: Recommender, now: datetime
) -> None:
    latest = set(towered._catalogue.ids[:MOST])
    shown = {
        item.item_id
        for user in sorted(set(living.events["user_id"]))[:10]
        for item in towered.recommend("feed", user, 10, now).items
    }
    assert shown - latest
    off = Recommender(narrow(living, retrieval="off"))
    shown = {
        item.item_id
        for user in sorted(set(living.events["user_id"]))[:10]
        for item in off.recommend("feed", user, 10, now).items
    }
    assert shown <= latest


def test_what_the_user_saw_is_left_out_and_comes_back_when_asked_for(
    living: Living, towered: Recommender, now: datetime
) -> None:
    user = living.reader()
    seen = {str(found["item_id"]) for found in towered.history(user)}
    assert not seen & {item.item_id for item in towered.recommend("reading", user, MOST, now).items}
    everything = towered.recommend("reading", user, MOST, now, exclude_seen=False)
    assert len(everything.items) == MOST


def test_towers_leave_no_trace_in_the_answer(living: Living, towered: Recommender, now: datetime) -> None:
    answer = towered.recommend("feed", living.reader(), 5, now)
    assert (answer.notes, answer.degraded) == ((), False)
    assert towered.recommend("feed", "nobody at all", 5, now).reason.startswith("unknown user")


def test_where_no_more_is_alive_than_is_scored_towers_change_nothing(
    living: Living, towered: Recommender, now: datetime
) -> None:
    wide = load_settings(living.settings.workspace)
    with_towers = Recommender(wide).recommend("feed", living.reader(), 80, now)
    without = Recommender(wide, version=living.version).recommend("feed", living.reader(), 80, now)
    assert with_towers.items == without.items


def test_where_towers_were_no_better_the_latest_are_scored(
    living: Living, tmp_path: Path, now: datetime
) -> None:
    publish_with_towers(living, tmp_path / "towered", contexts=("feed",))
    recommender = Recommender(narrow(living))
    for context, chosen in (("feed", True), ("reading", False)):
        answer = recommender.recommend(context, living.reader(), MOST, now, exclude_seen=False)
        shown = {item.item_id for item in answer.items}
        assert (shown != set(recommender._catalogue.ids[:MOST])) is chosen


def test_where_nothing_is_alive_the_latest_are_ranked_as_the_note_says(
    living: Living, towered: Recommender, now: datetime
) -> None:
    later = now + timedelta(days=400)
    answer = towered.recommend("feed", living.reader(), MOST, later, exclude_seen=False)
    assert {item.item_id for item in answer.items} == set(towered._catalogue.ids[:MOST])
    assert answer.degraded


def test_a_bundle_without_towers_scores_the_latest(living: Living, now: datetime) -> None:
    assert b'"towers"' not in (living.settings.bundles_folder / living.version / "manifest.json").read_bytes()
    recommender = Recommender(narrow(living))
    assert recommender._retrieval is None
    answer = recommender.recommend("feed", living.reader(), MOST, now, exclude_seen=False)
    assert {item.item_id for item in answer.items} == set(recommender._catalogue.ids[:MOST])


def test_items_that_are_read_again_get_new_vectors(
    living: Living, towered: Recommender, now: datetime
) -> None:
    from test_recommender import interactions

    assert towered._retrieval is not None
    index = towered._retrieval._index
    assert isinstance(index, ExactIndex)
    before = index._vectors
    towered.record(interactions("somebody", towered._catalogue.ids[30:33], "reading", now))
    towered._retrieval._due = float("inf")
    towered.refresh()
    assert towered._retrieval._index is index  # not more often than a tenth of the time allows
    towered._retrieval._due = 0.0
    towered.refresh()  # nothing was written since, and vectors are behind
    after = towered._retrieval._index
    assert isinstance(after, ExactIndex)
    assert (after._vectors[30:33] != before[30:33]).any(axis=1).all()
    towered._retrieval._due = 0.0
    towered.refresh()
    assert towered._retrieval._index is after  # nothing changed


def test_an_approximate_index_serves_the_same_lists_nearly(
    living: Living, towered: Recommender, now: datetime
) -> None:
    near = Recommender(narrow(living, retrieval="ann"))
    assert near._retrieval is not None
    assert isinstance(near._retrieval._index, ApproximateIndex)
    exact = towered.recommend("feed", living.reader(), 10, now).items
    found = near.recommend("feed", living.reader(), 10, now).items
    scores = {item.item_id: item.score for item in exact}
    shared = [item for item in found if item.item_id in scores]
    assert len(shared) >= 5
    assert [item.score for item in shared] == [scores[item.item_id] for item in shared]


def test_a_damaged_tower_is_refused_and_the_champion_goes_on(living: Living, tmp_path: Path) -> None:
    told: list[str] = []
    champion = Champion(narrow(living), refused=lambda _, why: told.append(why))
    version = publish_with_towers(living, tmp_path / "towered")
    file = living.settings.bundles_folder / version / "towers" / "item.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    champion.look()
    assert champion.get().version == living.version
    assert len(told) == 1
    assert "towers/item.onnx" in told[0]


def test_a_context_that_the_towers_do_not_know_is_retrieved_for(
    living: Living, towered: Recommender, now: datetime
) -> None:
    assert towered._retrieval is not None
    assert towered._retrieval._unit.context_index("saving") == 0
    assert towered._retrieval.chooses("saving")
    row = towered._space.stranger("feed")[towered._space.split.request]
    places = towered._retrieval.choose(
        "saving", "nobody", (), row, alive=60, most=MOST, without=np.array([], dtype=np.int64)
    )
    assert len(places) == MOST


def test_an_unknown_way_to_retrieve_is_refused(living: Living) -> None:
    with pytest.raises(InputError, match="retrieval"):
        narrow(living, retrieval="psychic")
    with pytest.raises(InputError, match="latest_share"):
        load_settings(living.settings.workspace, retrieval={"latest_share": 1.5})


def test_without_faiss_the_approximate_index_is_refused_by_name(
    living: Living, towered: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "recmeta.serving.approximate", None)
    with pytest.raises(InputError, match=r"recmeta\[ann\]"):
        Recommender(narrow(living, retrieval="ann"))


def test_serving_with_towers_imports_neither_torch_nor_faiss(living: Living, towered: Recommender) -> None:
    code = (
        "import sys; from recmeta.serving.recommender import Recommender; "
        "from recmeta.settings import load_settings; "
        f"s = load_settings({str(living.settings.workspace)!r}, serving={{'most_candidates': 20}});"
        "r = Recommender(s); "
        f"assert r._retrieval is not None; assert r.recommend('feed', 'x', 5).items; "
        "print(sorted({'torch', 'feast', 'faiss'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_the_store_keeps_towers_only_with_a_unit_and_contexts_that_there_are(
    living: Living, towered: Recommender, tmp_path: Path
) -> None:
    store = BundleStore(living.settings.bundles_folder)
    bundle = store.open(towered.version)
    towers = bundle.manifest.towers
    assert towers is not None
    for update in ({"unit": "ffffffffffff"}, {"sources": ("nowhere",)}):
        wrong = bundle.manifest.model_copy(update={"towers": towers.model_copy(update=update), "files": {}})
        with pytest.raises(InputError, match="towers"):
            store.publish(wrong, bundle.folder)
