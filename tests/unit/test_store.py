from __future__ import annotations

import pytest

from edgekit.core.store import Key, Store, canonical_json, publish, scratch
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
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert not store.step(key(), lambda out: None).cached


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
