"""Every command in a narrow terminal: names, paths and verdicts are whole, whatever else is wrapped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from cli_process import edgekit

from edgekit.cli import COMMANDS

WIDTHS = (80, 60)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    import torch

    import edgekit as api

    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    rows = [np.random.default_rng(k).normal(size=(1, 6)).astype(np.float32) for k in range(40)]
    out = tmp_path_factory.mktemp("a-folder-with-a-name-of-some-length") / "build-of-today"
    options = api.Options(out=out, speed_gate=False)
    api.build(module, targets=["ort-fp32", "ort-int8"], calibration=rows, evaluation=rows, options=options)
    return out


@pytest.fixture(scope="module")
def history(tmp_path_factory, built) -> dict[str, str]:
    """An environment whose history has enough rows for a long table."""
    env = {"EDGEKIT_HISTORY": str(tmp_path_factory.mktemp("history") / "h.db")}
    for _ in range(3):
        for name in ("ort-fp32", "ort-int8"):
            done = edgekit("bench", built / name, "--processes", 2, "--seconds", 0.01, env=env)
            assert done.code == 0, done.err
    return env


def terminal(width: int, *argv: object, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a command whose stdout and stderr are a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    inherited = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, "-m", "edgekit", *map(str, argv)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**inherited, **(env or {})}
    ) as process:
        os.close(theirs)
        said = bytearray()
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while data := os.read(ours, 1 << 16):
                said += data
        os.close(ours)
    return process.returncode, said.decode().replace("\r\n", "\n")


_PAINT = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(width: int, *argv: object, env: dict[str, str] | None = None, codes=(0,)) -> str:
    code, said = terminal(width, *argv, env={"TERM": "dumb", **(env or {})})
    assert code in codes, said
    text = _PAINT.sub("", said)
    for line in text.splitlines():
        # One word may be wider than the terminal: it stands alone then, behind what labels it.
        longest = max(map(len, line.split()), default=0)
        assert len(line) <= max(width, longest + 24), line
    return text


def whole(text: str, *words: str) -> None:
    found = set(text.split()) | set(re.split(r"[\s,]+", text))
    assert [word for word in words if word not in found] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_names_of_targets_and_steps(width):
    from edgekit.compress import registry
    from edgekit.core import targets

    whole(shown(width, "targets"), *targets.known())
    whole(shown(width, "targets", "--why"), *targets.known())
    whole(shown(width, "targets", "tensorrt-rtx-fp16"), "tensorrt-rtx-fp16", "compute_capabilities")
    whole(shown(width, "steps"), *registry.registry())


@pytest.mark.parametrize("width", WIDTHS)
def test_an_artifact(width, built):
    folder = built / "ort-int8"
    whole(shown(width, "inspect", folder), str(folder), "passed;", "top1-agreement", "model.onnx", "int8")
    whole(
        shown(width, "inspect", folder / "model.onnx", "--layers"),
        "openvino-int4-weights",
        "tensorrt-rtx-fp16",
    )
    whole(shown(width, "verify", folder, codes=(0, 5)), "top1-agreement", "passed")
    whole(shown(width, "profile", folder, "--runs", 5), "QGemm")
    whole(shown(width, "diff", folder, built / "ort-fp32", codes=(0, 5)))
    whole(shown(width, "compare", built, built), "ort-int8", "ort-fp32")


@pytest.mark.parametrize("width", WIDTHS)
def test_verdicts_of_bench_are_whole(width, built):
    out = shown(
        width, "bench", built / "ort-int8", "--vs", built / "ort-fp32", "--processes", 2, "--seconds", 0.02
    )
    whole(out, "ort-int8", "local")
    text = " ".join(out.split())
    assert re.search(r"(faster|slower|no detectable difference) \(", text), out
    assert re.search(r"\b(VALID|NOISY|INVALID)\b", text), out


@pytest.mark.parametrize("width", WIDTHS)
def test_a_history_of_many_rows(width, history):
    out = shown(width, "history", env=history)
    whole(out, "ort-int8", "ort-fp32", "bench", "passed")
    assert len(out.splitlines()) <= 3 * 7, out  # no block a row: there are six


@pytest.mark.parametrize("width", WIDTHS)
def test_what_a_build_ends_with(width, built, tmp_path):
    source = built / "ort-fp32" / "model.onnx"
    rows = tmp_path / "rows"
    rows.mkdir()
    np.savez(rows / "0.npz", **{"input": np.ones((1, 6), np.float32)})
    name = json.loads((built / "ort-fp32/manifest.json").read_text())["inputs"][0]["name"]
    np.savez(rows / "0.npz", **{name: np.ones((1, 6), np.float32)})
    argv = ["build", source, "-t", "ort-fp32,ort-int8-weights", "--calib", rows, "-o", tmp_path / "o"]
    out = shown(width, *argv, codes=(0, 5))
    whole(out, "ort-fp32", "ort-int8-weights", str(tmp_path / "o" / "ort-fp32"))
    whole(shown(width, *argv, "--dry-run"), "ort-int8-weights")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("argv", [("devices", "list"), ("doctor",), ("cache",)], ids=" ".join)
def test_what_else_prints_a_table(argv, width):
    shown(width, *argv, codes=(0, 6))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, width):
    out = shown(width, *filter(None, (command, "--help")))
    options = set(re.findall(r"(?m)^  (?:-\w, )?(--[\w-]+)", out))
    assert options, out


def test_no_color_is_obeyed_and_colours_are_there_without_it(built):
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        code, said = terminal(80, "inspect", built / "ort-int8", env={"TERM": "xterm", **env})
        assert code == 0
        assert ("\x1b[" in said) is coloured
        code, said = terminal(80, "inspect", built / "nothing", env={"TERM": "xterm", **env})
        assert code == 3
        assert ("\x1b[" in said) is coloured


def test_a_message_on_a_pipe_is_one_line(built):
    """Whatever ``COLUMNS`` says: there are programs that export it."""
    done = edgekit("verify", built, env={"COLUMNS": "60"})
    assert done.code == 2
    assert f"edgekit verify {built / 'ort-fp32'}" in done.err
    assert all(line.startswith(("error:", "hint:")) for line in done.err.splitlines())
