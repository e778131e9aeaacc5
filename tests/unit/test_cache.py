"""What the cache may hold, what goes first, and what killed processes left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgekit.cli import cli
from edgekit.core import cache, files
from edgekit.core.store import Key, Store
from edgekit.errors import ConfigError


def key(number: int) -> Key:
    return Key(name="step", inputs=(str(number),), options={}, versions={})


def filled(out: Path) -> None:
    (out / "data").write_bytes(bytes(1000))


def elsewhere(root: Path, code: str) -> None:
    """Run in a process of its own: what this one used is never removed by it."""
    command = (
        f"from pathlib import Path; from tests.unit.test_cache import *; root = Path({str(root)!r}); {code}"
    )
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[2])


def fill(root: Path, count: int) -> None:
    elsewhere(root, f"store = Store(root); [store.step(key(n), filled) for n in range({count})]")
    for number in range(count):
        touched = record(root, number)
        os.utime(touched, (number, number))


def record(root: Path, number: int) -> Path:
    return root / "steps" / "step" / key(number).digest[:32] / "step.json"


def there(root: Path, count: int) -> list[int]:
    return [n for n in range(count) if record(root, n).exists()]


def test_what_was_used_longest_ago_goes_first(tmp_path):
    fill(tmp_path, 4)
    assert Store(tmp_path).step(key(0), filled).cached  # now it is the newest
    removed = cache.reduce(tmp_path, size=cache_size(tmp_path) - 500)  # records differ in a few bytes
    assert (removed.entries, there(tmp_path, 4)) == (1, [0, 2, 3])
    assert removed.bytes > 1000


def cache_size(root: Path) -> int:
    return sum(e.size for e in cache.entries(root))


def test_what_is_old_goes(tmp_path):
    fill(tmp_path, 3)
    os.utime(record(tmp_path, 1))
    cache.reduce(tmp_path, used_before=time.time() - 60)
    assert there(tmp_path, 3) == [1]


def test_a_build_never_loses_what_it_uses(tmp_path, monkeypatch):
    fill(tmp_path, 2)
    monkeypatch.setenv("EDGEKIT_CACHE_LIMIT", "1.5kB")
    said: list[str] = []
    store = Store(tmp_path, said.append)
    assert store.step(key(1), filled).cached
    for number in (7, 8, 9):
        store.step(key(number), filled)
    assert there(tmp_path, 10) == [1, 7, 8, 9]
    assert said == ["the cache is full: 1 of its oldest entries were removed"]
    # nor does another process take from a build that runs
    elsewhere(tmp_path, "cache.prune(root, size=0)")
    assert there(tmp_path, 10) == [1, 7, 8, 9]


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2 * 2**30), ("700kB", 700_000)]
)
def test_sizes(text, size):
    assert cache.parse_size(text, what="it") == size


@pytest.mark.parametrize(
    "text",
    [
        "20",
        "GB",
        "20gb",
        "-1GB",
        "1e3MB",
        "20 G",
        "20GB please",
        "kiB",
        "99999999999999999GB",
        "9" * 5000 + "kB",
    ],
)
def test_what_is_no_size_is_an_error(text, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match="EDGEKIT_CACHE_LIMIT") as error:
        Store()
    assert "20GB" in error.value.hint or "TiB" in error.value.hint


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["cache", *arguments])


def test_the_command_tells_and_removes(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    fill(tmp_path, 3)
    told = json.loads(run("--json").output)
    assert told["kinds"] == {"step": {"entries": 3, "bytes": cache_size(tmp_path)}}
    assert (told["cache"], told["limit"]) == (str(tmp_path), 20 * 10**9)
    assert "3" in run("info").output
    assert json.loads(run("prune", "--limit", "3kB", "--json").output)["removed"] == 1
    assert there(tmp_path, 3) == [1, 2]
    os.utime(record(tmp_path, 2))
    assert "1 entries removed" in run("prune", "--older-than", "1d").output
    assert there(tmp_path, 3) == [2]
    assert json.loads(run("clear", "--json").output)["bytes"] == 0
    assert there(tmp_path, 3) == []


def test_unfinished_work_goes_when_it_is_old_or_all_goes(tmp_path):
    work = tmp_path / "compressing" / "0123"
    work.mkdir(parents=True)
    (work / "checkpoint").write_bytes(bytes(5000))
    assert cache.prune(tmp_path, size=10, kept=cache.UNFINISHED).entries == 0
    assert cache.prune(tmp_path, used_before=time.time() + 1, kept=cache.UNFINISHED).entries == 1


@pytest.mark.parametrize("arguments", [("prune", "--limit", "20"), ("prune", "--older-than", "30")])
def test_the_command_refuses_what_it_cannot_read(tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    assert isinstance(run(*arguments).exception, ConfigError)


def test_ages():
    assert cache.parse_age("30d", what="it") == 30 * 86400
    with pytest.raises(ConfigError):
        cache.parse_age("30", what="it")


def dead(folder: Path, name: str) -> str:
    """The name that a process gave something before it was killed."""
    command = f"from edgekit.core.files import owner; print({name!r}.format(owner=owner()))"
    done = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_what_killed_processes_left_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    parts = tmp_path / "cache" / "parts"
    (tmp_path / "tmp").mkdir()
    parts.mkdir(parents=True)
    left = [
        parts / dead(parts, ".part-{owner}-0123abcd"),
        tmp_path / "tmp" / dead(tmp_path, "edgekit-run-{owner}-abc"),
        tmp_path / "tmp" / dead(tmp_path, "ek-{owner}-abc"),
    ]
    mine = [parts / f".part-{files.owner()}-0123abcd", tmp_path / "tmp" / f"edgekit-run-{files.owner()}-abc"]
    other = [tmp_path / "tmp" / "edgekit-data", tmp_path / "tmp" / "edgekit-1.2.3-notes", parts / "unrelated"]
    for folder in (*left, *mine, *other):
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").write_text("")
    Store(tmp_path / "cache").step(key(0), filled)
    assert [p.exists() for p in left] == [False] * 3
    assert all(p.exists() for p in (*mine, *other))


def test_a_number_that_was_given_again_is_another_process(tmp_path):
    pid, start, space = files.owner().split(".")
    if start == "0":
        pytest.skip("the system does not say when a process began")
    for name, expected in {
        f".part-{pid}.{start}.{space}-x": True,
        f".part-{pid}.{int(start) - 1}.{space}-x": False,
        f".part-{pid}.{start}.000000-x": True,  # of another machine: nobody here knows
        ".part-1234-x": True,
    }.items():
        assert files.alive(name) is expected, name


def test_what_another_machine_makes_is_left_alone_for_a_week(tmp_path):
    work = tmp_path / ".part-1.2.000000-x"
    work.mkdir()
    assert files.sweep(tmp_path) == 0
    os.utime(work, (time.time() - 8 * 86400,) * 2)
    assert files.sweep(tmp_path) == 1


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    old = tmp_path / dead(tmp_path, ".old-{owner}-ort-int8")
    old.mkdir()
    (old / "model.onnx").write_text("whole")
    files.sweep(tmp_path)
    assert (tmp_path / "ort-int8" / "model.onnx").read_text() == "whole"


def test_a_file_appears_as_a_whole(tmp_path):
    files.write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
