"""The store publishes once, moves one pointer, opens only what is whole, survives kills and full disks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bundle_samples import FILES, sample_manifest, write_files

from recmeta.bundle.manifest import MANIFEST_NAME
from recmeta.bundle.store import BundleStore
from recmeta.errors import BusyError, InputError, IntegrityError, NotFoundError


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return write_files(tmp_path / "files")


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "bundles")


def _publish(store: BundleStore, files: Path, seed: int = 0, parent: str | None = None) -> str:
    return store.publish(sample_manifest(seed=seed, parent=parent), files)


def test_an_empty_store_has_no_champion(store: BundleStore) -> None:
    assert store.champion() is None
    assert store.champion_version() is None
    assert store.list() == []
    assert not store.folder.exists()


def test_a_published_bundle_opens_and_does_not_serve(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    bundle = store.open(version)
    assert bundle.version == version
    assert {path: bundle.file(path).read_bytes() for path in FILES} == FILES
    assert store.champion() is None
    with pytest.raises(NotFoundError, match=r"no file 'nothing\.onnx'"):
        bundle.file("nothing.onnx")


def test_publishing_the_same_bytes_twice_gives_the_same_version_and_touches_nothing(
    store: BundleStore, files: Path
) -> None:
    version = _publish(store, files)
    before = {path: path.stat().st_mtime_ns for path in (store.folder / version).rglob("*")}
    assert _publish(store, files) == version
    assert {path: path.stat().st_mtime_ns for path in (store.folder / version).rglob("*")} == before


def test_another_byte_in_any_file_is_another_version(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    (files / "empty.bin").write_bytes(b"\0")
    assert _publish(store, files) != version


def test_two_stores_publish_the_same_bundle_to_the_same_bytes(tmp_path: Path, files: Path) -> None:
    one, two = BundleStore(tmp_path / "one"), BundleStore(tmp_path / "two")
    version = _publish(one, files)
    assert _publish(two, files) == version
    content = (one.folder / version / MANIFEST_NAME).read_bytes()
    assert (two.folder / version / MANIFEST_NAME).read_bytes() == content


def test_a_file_that_the_manifest_names_has_to_be_there(store: BundleStore, files: Path) -> None:
    (files / "trees/feed.onnx").unlink()
    with pytest.raises(InputError, match=r"trees/feed\.onnx"):
        _publish(store, files)
    assert store.list() == []


def test_links_are_not_published(store: BundleStore, files: Path) -> None:
    (files / "link").symlink_to("/etc/hostname")
    with pytest.raises(InputError, match="plain file"):
        _publish(store, files)


def test_promotion_moves_the_pointer_and_is_remembered(store: BundleStore, files: Path) -> None:
    first = _publish(store, files)
    store.promote(first, None)
    second = _publish(store, files, seed=1, parent=first)
    store.promote(second, first)
    champion = store.champion()
    assert champion is not None
    assert champion.version == second
    assert [(move.action, move.version) for move in store.history()] == [
        ("promote", first),
        ("promote", second),
    ]
    listed = {entry.version: entry for entry in store.list()}
    assert [version for version, entry in listed.items() if entry.champion] == [second]
    assert len(listed[first].promoted) == 1
    assert listed[second].manifest is not None
    assert listed[second].manifest.parent == first


def test_promoting_the_champion_again_changes_nothing(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    store.promote(version, None)
    pointer = (store.folder / "champion.json").read_bytes()
    store.promote(version, None)
    assert (store.folder / "champion.json").read_bytes() == pointer


def test_promotion_is_refused_when_another_run_promoted_meanwhile(store: BundleStore, files: Path) -> None:
    first, second = _publish(store, files), _publish(store, files, seed=1)
    store.promote(first, None)
    with pytest.raises(BusyError, match=f"expected the champion to be none, found {first}"):
        store.promote(second, None)
    assert store.champion_version() == first


def test_of_many_runs_that_promote_at_once_exactly_one_wins(store: BundleStore, files: Path) -> None:
    versions = [_publish(store, files, seed=seed) for seed in range(4)]
    code = (
        "import sys; from pathlib import Path\n"
        "from recmeta.bundle.store import BundleStore; from recmeta.errors import BusyError\n"
        "sys.stdin.readline()\n"
        "try: BundleStore(Path(sys.argv[1])).promote(sys.argv[2], None)\n"
        "except BusyError: sys.exit(75)\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(store.folder), version], stdin=subprocess.PIPE)
        for version in versions
    ]
    for run in runs:
        assert run.stdin is not None
        run.stdin.close()
    codes = [run.wait(60) for run in runs]
    assert sorted(codes) == [0, 75, 75, 75]
    assert store.champion_version() == versions[codes.index(0)]
    assert len(store.history()) == 1


def test_rolling_back_goes_back_one_champion_each_time_and_never_forth(
    store: BundleStore, files: Path
) -> None:
    versions = [_publish(store, files, seed=seed) for seed in range(3)]
    for before, version in zip([None, *versions], versions, strict=False):
        store.promote(version, before)
    assert store.rollback() == versions[1]
    assert store.rollback() == versions[0]
    with pytest.raises(NotFoundError, match="no champion came before"):
        store.rollback()
    assert store.champion_version() == versions[0]
    assert [move.action for move in store.history()] == ["promote"] * 3 + ["rollback"] * 2


def test_after_a_rollback_the_next_promotion_rolls_back_to_it(store: BundleStore, files: Path) -> None:
    a, b, c = (_publish(store, files, seed=seed) for seed in range(3))
    store.promote(a, None)
    store.promote(b, a)
    store.rollback()
    store.promote(c, a)
    assert store.rollback() == a


def test_rolling_back_to_a_named_bundle(store: BundleStore, files: Path) -> None:
    a, b, c = (_publish(store, files, seed=seed) for seed in range(3))
    store.promote(a, None)
    store.promote(b, a)
    assert store.rollback(c) == c, "any published bundle may be named"
    assert store.rollback() == b
    with pytest.raises(NotFoundError, match="no bundle '20990101-000000000000'"):
        store.rollback("20990101-000000000000")


def test_rolling_back_before_any_promotion_is_said_to_be_impossible(store: BundleStore, files: Path) -> None:
    _publish(store, files)
    with pytest.raises(NotFoundError, match="nothing was promoted yet"):
        store.rollback()


def test_a_damaged_bundle_is_not_rolled_back_to(store: BundleStore, files: Path) -> None:
    a, b = _publish(store, files), _publish(store, files, seed=1)
    store.promote(a, None)
    store.promote(b, a)
    _flip(store.folder / a / "trees/feed.onnx")
    with pytest.raises(IntegrityError, match=r"trees/feed\.onnx"):
        store.rollback()
    assert store.champion_version() == b


@pytest.mark.parametrize("version", ["../x", "", "..", "20260630-0123456789AB", "x" * 5000, "a\0b"])
def test_a_version_that_is_none_is_not_found(store: BundleStore, files: Path, version: str) -> None:
    _publish(store, files)
    with pytest.raises(NotFoundError, match="no bundle") as caught:
        store.open(version)
    assert len(str(caught.value)) < 1000


def _flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("path", sorted(path for path in [*FILES, MANIFEST_NAME] if path != "empty.bin"))
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_a_flipped_bit_in_any_file_is_refused_and_the_file_named(
    store: BundleStore, files: Path, path: str, at: float
) -> None:
    version = _publish(store, files)
    store.promote(version, None)
    _flip(store.folder / version / path, at)
    for attempt in (store.champion, lambda: store.open(version), lambda: store.promote(version, None)):
        with pytest.raises(IntegrityError) as caught:
            attempt()
        assert str(store.folder / version / path) in str(caught.value)


def test_a_longer_a_missing_and_an_extra_file_are_refused_and_named(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    folder = store.folder / version
    (folder / "empty.bin").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"empty\.bin: expected 0 bytes, found 1"):
        store.open(version)
    (folder / "empty.bin").unlink()
    with pytest.raises(IntegrityError, match=r"empty\.bin: is in the bundle's manifest, and is missing"):
        store.open(version)
    (folder / "empty.bin").touch()
    (folder / "adapters" / "extra.onnx_adapter").touch()
    with pytest.raises(IntegrityError, match=r"extra\.onnx_adapter: is not in the bundle's manifest"):
        store.open(version)


def test_a_file_swapped_for_a_link_to_the_same_bytes_is_refused(
    store: BundleStore, files: Path, tmp_path: Path
) -> None:
    version = _publish(store, files)
    for path in ("trees/feed.onnx", MANIFEST_NAME):
        target = store.folder / version / path
        shutil.copyfile(target, tmp_path / "aside")
        target.unlink()
        target.symlink_to(tmp_path / "aside")
        with pytest.raises(IntegrityError, match="link"):
            store.open(version)
        target.unlink()
        shutil.copyfile(tmp_path / "aside", target)
    store.open(version)


def test_a_bundle_under_another_name_is_refused(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    other = "20260701" + version[8:]
    (store.folder / version).rename(store.folder / other)
    with pytest.raises(IntegrityError, match=f"are those of {version}"):
        store.open(other)


def test_a_missing_manifest_is_named(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    (store.folder / version / MANIFEST_NAME).unlink()
    with pytest.raises(IntegrityError, match=r"manifest\.json: is missing"):
        store.open(version)
    assert [(entry.version, entry.manifest) for entry in store.list()] == [(version, None)]
    assert "manifest.json" in str(store.list()[0].problem)


def test_no_flipped_bit_of_the_pointer_makes_another_bundle_serve(store: BundleStore, files: Path) -> None:
    first, second = _publish(store, files), _publish(store, files, seed=1)
    store.promote(first, None)
    store.promote(second, first)
    pointer = store.folder / "champion.json"
    content = pointer.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        pointer.write_bytes(damaged)
        try:
            champion = store.champion()
        except IntegrityError as error:
            assert "champion.json" in str(error)
        else:
            assert champion is not None
            assert champion.version == second
    pointer.write_text("")
    with pytest.raises(IntegrityError, match=r"champion\.json"):
        store.promote(first, None)


def test_a_champion_that_was_deleted_is_said_to_be_gone(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    store.promote(version, None)
    shutil.rmtree(store.folder / version)
    with pytest.raises(NotFoundError, match=version):
        store.champion()


# A child that publishes and promotes until it is killed; the parent kills it wherever it happens to be.
_NIGHTS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from bundle_samples import sample_manifest
from recmeta.bundle.store import BundleStore
store = BundleStore(Path(sys.argv[1]))
print("ready", flush=True)
for seed in range(int(sys.argv[4]), 10**6):
    parent = store.champion_version()
    store.promote(store.publish(sample_manifest(seed=seed, parent=parent), Path(sys.argv[2])), parent)
"""


def test_killed_at_any_instant_the_champion_still_serves_and_the_next_run_goes_on(
    store: BundleStore, files: Path
) -> None:
    store.promote(_publish(store, files, seed=10**7), None)
    here = str(Path(__file__).parent)
    for turn in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", _NIGHTS, str(store.folder), str(files), here, str(turn * 1000)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.011 * turn + 0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
        champion = store.champion()
        assert champion is not None
        for entry in store.list():
            store.open(entry.version)  # whatever has a final name is whole
        after = _publish(store, files, seed=turn * 1000 + 999, parent=champion.version)
        store.promote(after, champion.version)
        assert store.champion_version() == after
        assert not list(store.folder.rglob("*.partial")), "what the killed run left is cleared away"


# Stops itself at the named rename: publish's (of the folder) or the pointer's.
_STOP = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from bundle_samples import sample_manifest
from recmeta.bundle.store import BundleStore
def watch(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
store = BundleStore(Path(sys.argv[1]))
parent = store.champion_version()
sys.addaudithook(watch)
store.promote(store.publish(sample_manifest(seed=5, parent=parent), Path(sys.argv[2])), parent)
"""


@pytest.mark.parametrize("rename", ["bundle", "champion.json"])
def test_killed_between_write_and_rename_the_champion_stays_and_the_next_run_ends_the_same(
    store: BundleStore, files: Path, tmp_path: Path, rename: str
) -> None:
    first = _publish(store, files)
    store.promote(first, None)
    elsewhere = BundleStore(tmp_path / "elsewhere")
    wanted = _publish(elsewhere, files, seed=5, parent=first)
    suffix = wanted if rename == "bundle" else rename
    arguments = [str(store.folder), str(files), str(Path(__file__).parent), suffix]
    run = subprocess.run([sys.executable, "-c", _STOP, *arguments])
    assert run.returncode == -signal.SIGKILL
    assert list(store.folder.rglob("*.partial")), "it was killed while something was half done"
    champion = store.champion()
    assert champion is not None
    assert champion.version == first
    again = subprocess.run([sys.executable, "-c", _STOP, *arguments[:3], "/nowhere"], capture_output=True)
    assert again.returncode == 0, again.stderr
    assert store.champion_version() == wanted
    assert not list(store.folder.rglob("*.partial"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A real file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    return folder


def test_on_a_full_disk_nothing_half_written_shows_and_the_champion_still_serves(
    small_disk: Path, files: Path
) -> None:
    try:
        store = BundleStore(small_disk / "bundles")
        (small_disk / "reserve").write_bytes(b"x" * 8192)
        first = _publish(store, files)
        store.promote(first, None)
        with pytest.raises(OSError, match="No space left"):
            for seed in range(1, 100):
                _publish(store, files, seed=seed)
        for entry in store.list():
            store.open(entry.version)
        assert store.champion_version() == first
        other = next(entry.version for entry in store.list() if entry.version != first)
        with pytest.raises(OSError, match="No space left"), (small_disk / "ballast").open("ab", 0) as stream:
            while True:
                stream.write(b"x" * 512)
        with pytest.raises(OSError, match="No space left"):
            store.promote(other, first)
        champion = store.champion()
        assert champion is not None
        assert champion.version == first
        (small_disk / "reserve").unlink()
        store.promote(other, first)
        assert store.champion_version() == other
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


def test_with_a_limit_on_file_size_publishing_fails_and_the_champion_still_serves(
    store: BundleStore, files: Path
) -> None:
    first = _publish(store, files)
    store.promote(first, None)
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from bundle_samples import sample_manifest; from recmeta.bundle.store import BundleStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]), resource.RLIM_INFINITY))\n"
        "store = BundleStore(Path(sys.argv[1]))\n"
        "try: store.promote(store.publish(sample_manifest(seed=9), Path(sys.argv[2])), sys.argv[5])\n"
        "except OSError: sys.exit(28)\n"
    )
    where = [str(store.folder), str(files), str(Path(__file__).parent)]
    for limit in (1, 700, 1200, 2000):
        run = subprocess.run([sys.executable, "-c", code, *where, str(limit), first])
        assert run.returncode == 28, limit
        champion = store.champion()
        assert champion is not None
        assert champion.version == first
        assert [entry.version for entry in store.list()] == [first]


def test_a_store_that_stays_locked_is_said_to_be_busy(
    store: BundleStore, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    version = _publish(store, files)
    monkeypatch.setattr("recmeta.bundle.store.LOCK_WAIT", 0.05)
    with FileLock(store.folder / ".lock"), pytest.raises(BusyError, match="try again"):
        store.promote(version, None)


def test_the_pointer_is_plain_json_that_names_the_champion(store: BundleStore, files: Path) -> None:
    version = _publish(store, files)
    store.promote(version, None)
    pointer = json.loads((store.folder / "champion.json").read_text())
    assert pointer["champion"] == version
    assert pointer["moves"][0]["action"] == "promote"
