"""One mistake that ends many targets is told once, with their names."""

from __future__ import annotations

import click
import pytest

import edgekit
from edgekit.cli._output import end_with
from edgekit.errors import BackendError, DeviceError, EdgekitError, MetricError


def _raised(target: str) -> MetricError:
    trace = f'Traceback\n  File "m.py", line 3, in score  # of {target}\nValueError: mine'
    return MetricError("the metric raised ValueError: mine", hint="look there", user_traceback=trace)


TARGETS = ["a", "b", "c", "d"]
ERRORS: list[EdgekitError] = [
    _raised("a"),
    BackendError("b cracked", hint="glue"),
    _raised("c"),
    _raised("d"),
]


def test_an_error_of_the_users_own_code_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit) as ended:
        end_with(ERRORS, TARGETS)
    said = capsys.readouterr().err
    assert ended.value.exit_code == 2
    assert (said.count("Traceback"), said.count("ValueError: mine"), said.count("error:")) == (1, 2, 2)
    assert "ended: a, c, d" in said
    assert "b cracked" in said


def test_where_they_have_no_names_they_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        end_with(ERRORS)
    assert "ended: 3 times" in capsys.readouterr().err


def test_alike_in_words_but_of_another_kind_is_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(click.exceptions.Exit):
        end_with([BackendError("it ended", hint=""), DeviceError("it ended", hint="")])
    assert capsys.readouterr().err.count("it ended") == 2


def test_from_python_the_notes_say_it_once() -> None:
    errors = [_raised("a"), BackendError("b cracked", hint="glue"), _raised("c"), _raised("d")]
    failures = tuple(edgekit.Failure(target=t, error=e) for t, e in zip(TARGETS, errors, strict=True))
    with pytest.raises(MetricError) as raised:
        edgekit.BuildResult(artifacts=(), failures=failures).raise_for_failures()
    assert raised.value.__notes__ == ["ended: a, c, d", "also: b cracked"]
