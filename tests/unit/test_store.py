from __future__ import annotations

import os
import shutil
import stat

import pytest

import edgekit.core.store as store_module
from edgekit.core.dependency import of_variable
from edgekit.core.files import publish, scratch
from edgekit.core.store import Key, Store, canonical_json
from edgekit.errors import UsageError


def key(**changes):
    return Key(**{"name": "step", "inputs": ("a",), "options": {"x": 1}, "versions": {"v": "1"}, **changes})


def test_a_finished_step_is_not_produced_again(tmp_path):
    store, runs = Store(tmp_path), []

    def produce(out):
        runs.append(1)
        (out / "file").write_text("result")

    first, second = store.step(key(), produce), store.step(key(), produce)
    assert (first.cached, second.cached, runs) == (False, True, [1])
    assert (second.directory / "file").read_text() == "result"


@pytest.mark.parametrize(
    "changed", [{"inputs": ("b",)}, {"options": {"x": 2}}, {"versions": {"v": "2"}}, {"name": "other"}]
)
def test_whatever_the_result_depends_on_is_in_the_key(tmp_path, changed):
    store = Store(tmp_path)
    store.step(key(), lambda out: None)
    assert not store.step(key(**changed), lambda out: None).cached


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_step_leaves_nothing(tmp_path, failure):
    store = Store(tmp_path)

    def produce(out):
        (out / "half").write_text("written")
        raise failure

    with pytest.raises(failure):
        store.step(key(), produce)
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != "runs"]
    assert left == [tmp_path / "locks"]  # one empty file, whose bytes processes lock
    assert (tmp_path / "locks").read_bytes() == b""
    assert not store.step(key(), lambda out: None).cached


def two_files(out):
    (out / "below").mkdir()
    (out / "model.bin").write_bytes(bytes(range(200)))
    (out / "below" / "weights.bin").write_bytes(bytes(100))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


DAMAGE = {
    "flipped": lambda path: flip(path, path.stat().st_size // 2),
    "first": lambda path: flip(path, 0),
    "last": lambda path: flip(path, path.stat().st_size - 1),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "missing": lambda path: path.unlink(),
    "link": lambda path: (
        path.rename(path.parent.parent / "aside"),
        path.symlink_to(path.parent.parent / "aside"),
    ),
    "junk": lambda path: (path.parent / "more.txt").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["model.bin", "below/weights.bin", "step.json"])
def test_what_is_damaged_is_said_once_and_made_again(tmp_path, name, damage):
    first = Store(tmp_path).step(key(), two_files)
    DAMAGE[damage](first.directory / name)
    said = []
    store = Store(tmp_path, said.append)
    again = store.step(key(), two_files)
    assert not again.cached
    assert (again.directory / "model.bin").read_bytes() == bytes(range(200))
    assert len(said) == 1
    assert "the cached result of step was damaged" in said[0]
    assert store.step(key(), two_files).cached
    assert Store(tmp_path, said.append).step(key(), two_files).cached
    assert len(said) == 1


def test_every_byte_of_a_record_counts(tmp_path):
    record = Store(tmp_path).step(key(), two_files).directory / "step.json"
    whole = record.read_bytes()
    for at in range(len(whole)):
        record.write_bytes(whole)
        flip(record, at)
        assert not Store(tmp_path, lambda _: None).step(key(), two_files).cached


def test_a_result_of_another_step_is_none(tmp_path):
    store, said = Store(tmp_path, lambda _: None), []
    other = store.step(key(options={"x": 2}), two_files).directory
    mine = store.step(key(), two_files).directory
    shutil.rmtree(mine)
    shutil.copytree(other, mine)
    assert not Store(tmp_path, said.append).step(key(), two_files).cached
    assert "another's" in said[0]


@pytest.mark.parametrize("damage", [d for d in DAMAGE if d not in ("junk", "missing", "link")])
def test_a_damaged_note_is_none(tmp_path, damage):
    store, said = Store(tmp_path), []
    store.remember("n", {"a": 1}, {"value": [1, 2]})
    (path,) = tmp_path.glob("notes/n/*.json")
    DAMAGE[damage](path)
    store = Store(tmp_path, said.append)
    assert store.recall("n", {"a": 1}) is None
    assert store.recall("n", {"a": 1}) is None
    assert len(said) == 1
    assert not path.exists()


def test_what_a_step_reads_beyond_its_key_counts(tmp_path):
    class Reads:
        dependencies = (of_variable("MINE", None),)
        doubts = ()

    store = Store(tmp_path)
    store.step(key(), two_files, Reads())
    assert store.step(key(), two_files, Reads()).cached
    os.environ["MINE"] = "1"
    try:
        assert not store.step(key(), two_files, Reads()).cached
    finally:
        del os.environ["MINE"]
    Reads.doubts = ("it starts another program",)
    assert not store.step(key(name="doubted"), two_files, Reads()).cached
    assert not store.step(key(name="doubted"), two_files, Reads()).cached


def test_a_result_is_not_replaced_while_another_process_reads_it(tmp_path, monkeypatch):
    class Reads:
        doubts = ()

        @property
        def dependencies(self):
            return (of_variable("MINE", os.environ.get("MINE")),)

    def made(out):
        (out / "file").write_text(os.environ["MINE"])

    first, second = Store(tmp_path), Store(tmp_path)
    monkeypatch.setenv("MINE", "before")
    old = first.step(key(), made, Reads()).directory
    monkeypatch.setenv("MINE", "after")
    new = second.step(key(), made, Reads()).directory
    assert ((old / "file").read_text(), (new / "file").read_text()) == ("before", "after")
    monkeypatch.setenv("MINE", "before")
    assert first.step(key(), made, Reads()).directory == old


def test_what_nobody_may_use_again_is_its_makers_until_it_ends_and_then_goes(tmp_path):
    class Reads:
        dependencies, doubts = (), ("it starts another program",)

    store = Store(tmp_path)
    mine = store.step(key(), two_files, Reads()).directory
    other = Store(tmp_path).step(key(), two_files, Reads()).directory
    assert mine != other
    assert (mine / "model.bin").exists()
    for marker in (tmp_path / "runs").glob(".run-*"):
        marker.unlink()  # as when their processes have ended, a minute ago
    for record in (tmp_path / "steps").rglob("step.json"):
        os.utime(record, (record.stat().st_mtime - 60,) * 2)
    newest = Store(tmp_path).step(key(), two_files, Reads()).directory
    assert list((tmp_path / "steps" / "step").iterdir()) == [newest]


def test_the_second_of_two_that_made_one_result_together_takes_the_firsts(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it: they do not wait for each other's lock
    first, second = Store(tmp_path), Store(tmp_path)
    inner = []

    def made(out):
        inner.append(first.step(key(), lambda own: (own / "file").write_text("first")).directory)
        (out / "file").write_text("second")

    found = second.step(key(), made).directory
    assert found == inner[0]
    assert (found / "file").read_text() == "first"
    assert not list((tmp_path / "parts").iterdir())


def test_a_damaged_result_does_not_stand_in_the_way_of_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    first, second = Store(tmp_path), Store(tmp_path, lambda text: None)

    def made(out):
        (first.step(key(), two_files).directory / "model.bin").write_bytes(b"damaged")
        two_files(out)

    assert (second.step(key(), made).directory / "model.bin").read_bytes() == bytes(range(200))


def test_a_cache_made_here_is_private_and_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        result = Store(tmp_path / "cache").step(key(), two_files)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700
    assert stat.S_IMODE(result.directory.stat().st_mode) == 0o750
    assert stat.S_IMODE((result.directory / "model.bin").stat().st_mode) == 0o640


def owned_by(monkeypatch, chosen):
    """Let what ``chosen`` says belong to somebody else, without being root."""
    real = store_module._is_ours
    theirs = chosen.stat()  # a number of an inode is given again: its birth tells
    same = lambda s: (s.st_ino, s.st_ctime_ns) == (theirs.st_ino, theirs.st_ctime_ns)  # noqa: E731
    monkeypatch.setattr(store_module, "_is_ours", lambda s: not same(s) and real(s))


@pytest.mark.parametrize("name", [".", "model.bin", "below", "step.json"])
def test_what_belongs_to_another_user_is_not_used(tmp_path, monkeypatch, name):
    directory = Store(tmp_path).step(key(), two_files).directory
    owned_by(monkeypatch, directory / name)
    said = []
    assert not Store(tmp_path, said.append).step(key(), two_files).cached
    assert "another user" in said[0]


def test_a_cache_of_another_user_is_refused(tmp_path, monkeypatch):
    Store(tmp_path).step(key(), two_files)
    owned_by(monkeypatch, tmp_path)
    with pytest.raises(UsageError, match="belongs to another user") as error:
        Store(tmp_path).step(key(), two_files)
    assert "EDGEKIT_CACHE" in error.value.hint


def test_a_cache_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for root in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "link"):
        with pytest.raises(UsageError, match="is no folder") as error:
            Store(root)
        assert "EDGEKIT_CACHE" in error.value.hint


def test_a_cache_that_is_read_only_is_read(tmp_path):
    Store(tmp_path).step(key(), two_files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
        assert Store(tmp_path).step(key(), two_files).cached


def test_notes_are_recalled_by_content(tmp_path):
    store = Store(tmp_path)
    assert store.recall("n", {"a": 1}) is None
    store.remember("n", {"a": 1, "b": 2}, {"value": [1, 2]})
    assert store.recall("n", {"b": 2, "a": 1}) == {"value": [1, 2]}
    assert store.recall("n", {"a": 2, "b": 2}) is None


def test_canonical_json_does_not_depend_on_order():
    assert (
        canonical_json({"b": 1, "a": (1, 2)}) == canonical_json({"a": [1, 2], "b": 1}) == b'{"a":[1,2],"b":1}'
    )


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write") as error, scratch(tmp_path / "file" / "below"):
        pass
    assert "--out" in error.value.hint


def test_publish_replaces_a_directory(tmp_path):
    final = tmp_path / "final"
    for text in ("old", "new"):
        with scratch(tmp_path) as work:
            (work / "file").write_text(text)
            publish(work, final)
    assert (final / "file").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["final"]
