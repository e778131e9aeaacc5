"""A stop that a library swallows ends what is at work all the same, and leaves nothing in the cache."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from edgekit.core import stops
from edgekit.core.store import Key, Store


@pytest.fixture(autouse=True)
def clean():
    yield
    stops.handled()


def swallowing(out):
    (out / "half.txt").write_text("half")
    with contextlib.suppress(BaseException):  # as a library's import does
        stops.ask(KeyboardInterrupt())


def test_what_was_made_meanwhile_is_not_kept(tmp_path):
    store, key = Store(tmp_path), Key(name="made", inputs=("a",), options={}, versions={})
    with pytest.raises(KeyboardInterrupt):
        store.step(key, swallowing)
    stops.handled()
    made = store.step(key, lambda out: (out / "whole.txt").write_text("whole"))
    assert not made.cached
    assert [p.name for p in made.directory.glob("*.txt")] == ["whole.txt"]


def test_one_that_was_obeyed_is_over(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stops.ask(KeyboardInterrupt())
    stops.handled()
    stops.check()


PROGRAM = """
import os, signal, sys, tempfile
from pathlib import Path
from edgekit.cli import _ending
from edgekit.core.store import Key, Store
_ending.prepare()

def produce(out):
    try:
        os.kill(os.getpid(), signal.SIGINT if sys.argv[1] == "INT" else signal.SIGTERM)
    except BaseException:
        pass

try:
    Store(Path(tempfile.mkdtemp())).step(Key(name="made", inputs=("a",), options={}, versions={}), produce)
except KeyboardInterrupt as stop:
    print(type(stop).__name__)
"""


@pytest.mark.parametrize(("name", "kind"), [("INT", "KeyboardInterrupt"), ("TERM", "Stopped")])
def test_signals_are_kept_until_somebody_looks(name, kind):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ,
    )
    assert done.stdout.strip() == kind, done.stderr
