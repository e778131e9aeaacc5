"""``edgekit targets NAME`` and ``edgekit steps``: what the catalogues say, by the names that other options take."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from edgekit.artifact.limits import NAMES, of_row, parse
from edgekit.cli import cli
from edgekit.compress.registry import default_options, registry
from edgekit.core import targets


def _run(*words: str) -> str:
    result = CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("name", ["ort-int8", "tflite-int8", "openvino-fp16", "tensorrt-int8"])
def test_all_about_a_target(name):
    text = _run("targets", name)
    row = targets.find(name)
    for word in (name, row.backend, str(row.precision), *(o.name for o in row.options)):
        assert word in text
    for limit, value in of_row(row.tolerance).items():
        assert limit in text
        assert f"{value:g}" in text
    entry = json.loads(_run("targets", name, "--json"))["targets"]
    assert [e["name"] for e in entry] == [name]


def test_the_limits_of_a_row_are_names_that_limit_takes():
    found = {name for row in targets.known().values() for name in of_row(row.tolerance)}
    assert found <= set(NAMES)
    for name in found - {"snr", "samples", "relative-error", "metric-drop"}:
        parse({name: "90%"})


def test_every_step_is_listed_with_its_options():
    text = _run("steps")
    for name in registry():
        assert name in text
        shown = _run("steps", name)
        assert all(option in shown for option in default_options(name))
    entries = json.loads(_run("steps", "--json"))["steps"]
    assert {e["name"]: e["options"] for e in entries} == {n: default_options(n) for n in registry()}
