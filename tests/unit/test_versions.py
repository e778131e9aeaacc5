"""What a cached step depends on of edgekit: all that it can run, and not the command line."""

from __future__ import annotations

import re
import shutil
import tomllib
from pathlib import Path

import pytest

from edgekit.core import plugins, versions
from edgekit.core.root import PACKAGE


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package to edit, with what runs on devices."""
    shutil.copytree(PACKAGE, tmp_path / "edgekit", ignore=shutil.ignore_patterns("__pycache__"))
    data = tmp_path / "targets"
    shutil.copytree(plugins.builtin.data, data)
    (tmp_path / "acme_of_mine").mkdir()
    (tmp_path / "acme_of_mine" / "__init__.py").write_text("")
    (tmp_path / "acme_of_mine" / "lower.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = plugins.Plugin(name="edgekit", data=data)
    acme = plugins.Plugin(name="acme", data=tmp_path / "none", backends={"acme": "acme_of_mine.lower"})
    monkeypatch.setattr(versions, "PACKAGE", tmp_path / "edgekit")
    monkeypatch.setattr(plugins, "plugins", lambda: (own, acme))
    versions.code.cache_clear()
    yield tmp_path
    versions.code.cache_clear()


def code(**options: bool) -> str:
    versions.code.cache_clear()
    return versions.code(**options)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("edgekit/graph/passes/__init__.py", True),
        ("edgekit/devices/agent/worker.py", True),
        ("edgekit/backends/tflite/__init__.py", True),
        ("edgekit/pipeline/work.py", True),
        ("edgekit/load/usercode.py", True),
        ("targets/onnxruntime/runner.py", True),
        ("acme_of_mine/lower.py", True),
        ("edgekit/cli/build.py", False),
        ("edgekit/search/run.py", False),
        ("edgekit/package/web.py", False),
        ("edgekit/diff/compare.py", False),
    ],
)
def test_what_a_step_can_run_counts(copied, file, counts):
    before, all_before = code(), code(above=True)
    (copied / file).write_text((copied / file).read_text() + "\n# changed\n")
    assert (code() != before) is counts
    assert code(above=True) != all_before


def test_the_rooms_left_out_are_above_every_step():
    """By the import contract, functions and type checking included; what they offer by name, only they ask for."""
    document = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = document["contracts"][0]["layers"]
    assert document["exclude_type_checking_imports"] is False
    above = layers[: layers.index("pipeline")]
    assert {room.strip() for layer in above for room in layer.split(":")} == set(versions.ABOVE) - {
        "__main__.py"
    }
    asked = re.compile(r"""(?:module|table|_entry)\("formats"|member\([^)]*"form\"""")
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        if room not in (*versions.ABOVE, "__init__.py") and path.name != "plugins.py":
            assert not asked.search(path.read_text()), path
