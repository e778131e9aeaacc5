"""Plan folders of others: what they name is not executed, and what they claim ends in a typed error."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgekit.compress import plan, recipes
from edgekit.core.store import Store
from edgekit.errors import ConfigError
from edgekit.search.trials import _rows

SOURCE = {"text": "model.py:net", "kind": "factory", "path": "../model.py", "attribute": "net"}


def _written(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    document = {"version": 1, "seed": 0, "steps": [], "report": {"metric": "", "steps": []}, "source": SOURCE}
    (folder / plan.PLAN).write_text(json.dumps({**document, **changes}))
    return folder


def test_a_plan_is_known_with_the_place_of_its_code(tmp_path):
    """The same bytes beside another model.py name code that nobody has seen."""
    store = Store(tmp_path / "cache")
    own, other = _written(tmp_path / "own" / "plan"), _written(tmp_path / "other" / "plan")
    plan.remember(own, store)
    assert store.recall("plan", plan._identity(own))
    assert (own / plan.PLAN).read_bytes() == (other / plan.PLAN).read_bytes()
    assert not store.recall("plan", plan._identity(other))
    link = tmp_path / "link"
    link.symlink_to(own)
    assert store.recall("plan", plan._identity(link))


@pytest.mark.parametrize("path", ["\0", "a\0b", "\ud800.py", "\x1b[31m", 3, ["a"]])
def test_a_path_that_is_none(tmp_path, path):
    with pytest.raises(ConfigError):
        plan.read(_written(tmp_path / "plan", source={**SOURCE, "path": path}))


def test_gigabytes_and_pipes_in_place_of_a_plan(tmp_path):
    large = _written(tmp_path / "large")
    os.truncate(large / plan.PLAN, 6 << 30)
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    os.mkfifo(pipe / plan.PLAN)
    for folder in (large, pipe):
        for read in (plan.read, plan._identity):
            with pytest.raises(ConfigError, match="no compression plan"):
                read(folder)


@pytest.mark.parametrize(
    "text",
    ["seed = -1", "seed = 99999999999999999999999", '[[step]]\nname = "prune"\nsparsity = nan', "[step]"],
)
def test_numbers_that_no_recipe_has(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text if "step" in text else f'{text}\n[[step]]\nname = "fold"\n')
    with pytest.raises(ConfigError):
        recipes.read(str(path))


@pytest.mark.parametrize("line", [b"\xff\xfe{", b"[" * 100_000, b"3", b""])
def test_a_journal_that_was_edited_ends_where_it_is_none(tmp_path, line):
    path = tmp_path / "search.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    assert _rows(path) == [{"a": 1}]


def test_a_recipe_of_fifty_thousand_steps(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[[step]]\nname = "fold"\n' * 50_000)
    for text in (str(path), ";".join(["fold"] * 50_000)):
        with pytest.raises(ConfigError, match="50,000 steps"):
            recipes.read(text)
