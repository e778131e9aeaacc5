"""``--json``: one document on stdout for every end, that of a command line that cannot be read too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import click
import edgekit.cli as program
error = {error}
class Fails(click.Command):
    def invoke(self, context):
        if {printed}:
            from edgekit.cli._output import print_json
            print_json({{"done": 1}})
        raise error
command = Fails("doctor", params=[click.Option(["--json"], is_flag=True)])
program.LazyGroup.get_command = lambda self, context, name: command
sys.argv = ["edgekit", "doctor", "--json"]
program.main()
"""


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "words",
    [
        ("build", "m.onnx", "--no-such-flag", "--json"),
        ("verify", "--json"),
        ("sweep", "s.toml", "--engine", "rey", "--json"),
        ("sweep", "s.toml", "--workers", "many", "--json"),
        ("history", "one", "two", "three", "--json"),
        ("bild", "--json"),
        ("--json",),
    ],
)
def test_usage_errors_are_a_document(words, tmp_path):
    done = run("-m", "edgekit", *words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 2
    assert error["message"]
    assert error["hint"]
    assert done.stderr.strip()


def test_a_usage_error_for_people_prints_nothing_on_stdout(tmp_path):
    assert run("-m", "edgekit", "verify", cwd=tmp_path).stdout == ""


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        ("ValueError('odd')", 1, "DefectError"),
        ("KeyboardInterrupt()", 130, "SIGINT"),
        ("__import__('edgekit.errors').errors.Stopped(15)", 143, "SIGTERM"),
        ("EOFError()", 1, "DefectError"),
    ],
)
def test_defects_and_stops_are_a_document(error, code, kind, tmp_path):
    done = run("-c", PROGRAM.format(error=error, printed=False), cwd=tmp_path)
    assert done.returncode == code, done.stderr
    document = json.loads(done.stdout)["error"]
    assert (document["type"], document["exit_code"]) == (kind, code)


def test_what_ends_after_the_document_adds_none(tmp_path):
    done = run("-c", PROGRAM.format(error="KeyboardInterrupt()", printed=True), cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (130, {"done": 1})
