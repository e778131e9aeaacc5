"""Ctrl-C and a full disk: nothing half-written, and the next run continues from the cache."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("interruption")]


def files(folder):
    return [p for p in folder.rglob("*") if p.is_file()]


def argv(root, out):
    return [
        sys.executable, "-m", "edgekit", "build", f"{root}/tests/e2e/sources.py:tiny", "-t", "ort-int8",
        "--calib", f"{root}/tests/e2e/sources.py:slow", "-o", str(out),
    ]  # fmt: skip


def test_ctrl_c_leaves_nothing_half_written_and_the_next_run_continues(root, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    env = {**os.environ, "EDGEKIT_CACHE": str(cache), "EDGEKIT_TEST_SLOW": "60"}
    with subprocess.Popen(argv(root, out), env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(cache.glob("steps/optimize/*/step.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not out.exists() or files(out) == []
    assert list(cache.rglob(".part-*")) == []
    before = {p: p.stat().st_ino for p in cache.glob("steps/export/*/step.json")}
    result = edgekit(*argv(root, out)[3:], env={"EDGEKIT_CACHE": str(cache)})
    assert result.code == 0, result.err
    assert {p: p.stat().st_ino for p in cache.glob("steps/export/*/step.json")} == before


def test_a_full_disk_is_said_and_leaves_nothing(root, tmp_path):
    """The file-size limit stands in for the full disk: both make write() fail half-way."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    result = subprocess.run(
        [*argv(root, out)],
        env={**os.environ, "EDGEKIT_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700)),
    )
    assert result.returncode == 2, result.stderr
    assert "cannot write" in result.stderr
    assert "hint:" in result.stderr
    assert not out.exists() or files(out) == []
    assert files(cache / "steps") == [] if (cache / "steps").exists() else True
