"""Progress on a pipe: lines for what takes long, nothing for what does not."""

from __future__ import annotations

import io
import sys

import pytest

from edgekit.cli import _lines, _output
from edgekit.core.progress import Reporter, watcher


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_takes_long_is_said_ever_less_often() -> None:
    said: list[str] = []
    clock = Clock()
    lines = _lines.Lines(said.append, clock)
    reporter = Reporter(lines)
    with reporter.task("quick"):
        clock.now = 1.0
        lines.look()
    with reporter.task("train", total=40) as task:
        for second in range(1, 301):
            clock.now = 1.0 + second
            task.advance() if second <= 40 else None
            lines.look()
    assert said[:4] == [
        "train … 2 of 40, 2 s so far",
        "train … 6 of 40, 6 s so far",
        "train … 14 of 40, 14 s so far",
        "train … 30 of 40, 30 s so far",
    ]
    assert said[-1] == "train: 300 s"
    assert len(said) < 12


def test_notes_are_said_at_once() -> None:
    said: list[str] = []
    Reporter(_lines.Lines(said.append)).note("from the cache")
    assert said == ["from the cache"]


def test_a_pipe_gets_lines_and_its_end_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, nobody = io.StringIO(), watcher()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(_lines, "_FIRST_S", 0.0)
    monkeypatch.setattr(_lines, "_LOOK_S", 0.01)
    with pytest.raises(KeyError):
        _interrupted(stream)
    assert watcher() is nobody
    assert "a step with [brackets]" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def _interrupted(stream: io.StringIO) -> None:
    with _output.progress() as shown:
        assert watcher() is shown
        with shown.task("a step with [brackets] and \x1b[31mcolour"):
            while "so far" not in stream.getvalue():
                pass
        raise KeyError


def test_two_reporters_speak_to_one_listener() -> None:
    """A command's own, and the one of a build inside of it."""
    lines = _lines.Lines(lambda _: None)
    outer, inner = Reporter(lines), Reporter(lines)
    with outer.task("build the engine"):
        with inner.task("lower"):
            pass
        with inner.task("lower"), outer.task("build another"):
            pass
