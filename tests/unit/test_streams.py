"""Standard streams that are closed, full or of an old locale change no exit code and give no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

FULL = Path("/dev/full")


def run(
    words: Sequence[str],
    folder: Path,
    *,
    closed: Sequence[int] = (),
    full: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """The command in a fresh process, some of whose streams are closed or on a disk without room."""

    def streams() -> None:
        for descriptor in full:
            os.dup2(os.open(FULL, os.O_WRONLY), descriptor)
        for descriptor in closed:
            os.close(descriptor)

    command = [sys.executable, "-m", "edgekit", *words]
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        preexec_fn=streams,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
def test_closed_streams(closed: tuple[int, ...], tmp_path: Path) -> None:
    assert run(["steps"], tmp_path, closed=closed).returncode == 0
    missing = run(["inspect", "nothing"], tmp_path, closed=closed)
    assert missing.returncode == 3
    assert b"Traceback" not in missing.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["steps"], ["steps", "--json"], ["targets", "--json"]])
def test_an_output_without_room_is_named(words: list[str], tmp_path: Path) -> None:
    result = run(words, tmp_path, full=[1])
    assert result.returncode == 2
    assert result.stderr.startswith(b"error: the output cannot be written: No space left on device")


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_errors_without_room_keep_their_code(tmp_path: Path) -> None:
    assert run(["inspect", "nothing"], tmp_path, full=[2]).returncode == 3
    assert run(["nothing"], tmp_path, full=[2]).returncode == 2
    assert run(["inspect", "nothing", "--json"], tmp_path, full=[1, 2]).returncode == 3


def test_what_is_opened_later_is_not_written_into(tmp_path: Path) -> None:
    """The lowest free descriptor goes to the next file: with stdout closed, that file would get what is printed."""
    code = (
        "import sys; sys.argv = ['edgekit', 'steps']\n"
        "from edgekit.cli import _streams, main\n"
        "prepare = _streams.prepare\n"
        "def prepared():\n    prepare(); global f; f = open('data.bin', 'wb')\n"
        "_streams.prepare = prepared\n"
        "main()\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        preexec_fn=lambda: os.close(1),
        check=True,
        timeout=120,
    )
    assert (tmp_path / "data.bin").read_bytes() == b""


def test_a_locale_without_the_characters_gets_escapes(tmp_path: Path) -> None:
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "née").mkdir()
    result = run(["steps"], tmp_path, env=old)
    assert result.returncode == 0
    assert b"prune" in result.stdout
    assert b"Traceback" not in result.stderr


def test_the_streams_that_the_command_made_can_be_silenced(tmp_path: Path) -> None:
    """What Python began with was detached, and what is silenced is flushed first: every build left onnxsim out."""
    code = (
        "import sys; from edgekit.cli import _streams; from edgekit.core.quiet import silence; _streams.prepare()\n"
        "print('before', end='')\n"
        "with silence(native=True): print('hidden')\n"
        "sys.__stdout__.flush(); print(' after', file=sys.__stdout__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("before after\n", "")


def test_a_stream_of_somebody_else_does_not_matter(tmp_path: Path) -> None:
    code = (
        "import io, sys; from edgekit.core.quiet import silence; sys.stdout = io.TextIOWrapper(sys.stdout.detach())\n"
        "with silence(native=True): print('hidden')\n"
        "print('after')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("after\n", "")
