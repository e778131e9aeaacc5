"""Signals, a full disk, code that ends the process, a folder that vanishes: nothing half-written, and never exit 0."""

from __future__ import annotations

import os
import resource
import shutil
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


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_a_stop_leaves_nothing_half_written_and_the_next_run_continues(number, said, root, tmp_path):
    cache, out, temporary = tmp_path / "cache", tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    env = {"EDGEKIT_CACHE": str(cache), "TMPDIR": str(temporary)}
    slow = {**os.environ, **env, "EDGEKIT_TEST_SLOW": "60"}
    with subprocess.Popen(argv(root, out), env=slow, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(cache.glob("steps/optimize/*/step.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(number)
        process.send_signal(number)  # a terminal that closes is told of twice
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert said in err
    assert "Traceback" not in err
    assert not out.exists() or files(out) == []
    assert list(cache.rglob(".part-*")) == list(cache.rglob(".run-*")) == []
    assert list(temporary.glob("edgekit-*")) == []
    if number is not signal.SIGINT:  # it goes on in the same way
        return
    before = {p: p.stat().st_ino for p in cache.glob("steps/export/*/step.json")}
    result = edgekit(*argv(root, out)[3:], env=env)
    assert result.code == 0, result.err
    assert {p: p.stat().st_ino for p in cache.glob("steps/export/*/step.json")} == before


def test_a_terminal_that_is_gone_cannot_be_told(tmp_path):
    """With the terminal's far end closed every write to it fails, the progress bar's last one too."""
    (tmp_path / "slow.py").write_text("import time\ndef model():\n    time.sleep(60)\n")
    near, far = os.openpty()
    command = [sys.executable, "-m", "edgekit", "build", "slow.py:model", "-t", "ort-fp32"]
    env = {**os.environ, "EDGEKIT_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(command, env=env, cwd=tmp_path, stdin=far, stdout=far, stderr=far) as process:
        os.close(far)
        assert os.read(near, 100)  # it is at work, and draws
        time.sleep(2)
        os.close(near)
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 128 + signal.SIGHUP
    assert list(tmp_path.rglob(".part-*")) == list(tmp_path.rglob(".run-*")) == []


def test_nohup_and_data_loaders_keep_their_ways(tmp_path):
    """A signal that is ignored stays so; a fork of the user's ends as if edgekit were not there."""
    (tmp_path / "it.py").write_text(
        "import os, signal, sys\n"
        "def model():\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        os._exit(0)\n"
        "    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os._exit(7)\n"
        "    left = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    raise ValueError(f'{ended} {left}')\n"
    )
    command = f"trap '' HUP; exec {sys.executable} -m edgekit build it.py:model -t ort-fp32"
    env = {**os.environ, "EDGEKIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        ["sh", "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "ValueError: -15 7" in done.stderr


THREAD = "thread = threading.Thread(target=os._exit, args=(0,)); thread.start(); thread.join()"


@pytest.mark.parametrize(
    ("where", "how", "code"),
    [
        ("import", "os._exit(0)", 3),
        ("factory", "os.execlp('true', 'true')", 3),
        ("forward", "sys.exit(0)", 3),
        ("forward", THREAD, 3),
        ("data", "os._exit(0)", 3),
        ("metric", "os._exit(0)", 2),
    ],
)
def test_code_that_ends_the_process_is_no_success(where, how, code, tmp_path):
    (tmp_path / "it.py").write_text(ENDING.format(how=how))
    result = edgekit(
        "build", f"{tmp_path}/it.py:factory", "-t", "ort-fp32", "--eval", f"{tmp_path}/it.py:data",
        "--metric", f"{tmp_path}/it.py:metric", "-o", tmp_path / "out",
        env={"EDGEKIT_CACHE": str(tmp_path / "cache"), "WHERE": where},
    )  # fmt: skip
    assert result.code == code, result.err
    assert "error:" in result.err
    assert not (tmp_path / "out").exists() or files(tmp_path / "out") == []


ENDING = """
import os, sys, threading
import numpy as np
import torch

def end(where):
    if os.environ["WHERE"] == where:
        {how}

end("import")

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        end("forward")
        return self.linear(x)

def factory():
    end("factory")
    torch.manual_seed(0)
    return Net(), (torch.ones(1, 4),)

def data():
    generator = np.random.default_rng(0)
    for row in range(16):
        if row == 8:
            end("data")
        yield generator.normal(size=(1, 4)).astype("f"), row % 3

def metric(outputs, label):
    end("metric")
    return 1.0
"""


def test_a_working_folder_that_vanished(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"rmdir {gone} && exec {sys.executable} -m edgekit "
    for words in ("build model.onnx -t ort-fp32", "targets", "cache", "devices list"):
        done = subprocess.run(
            ["sh", "-c", script + words], cwd=gone, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "the working folder is gone" in done.stderr
        gone.mkdir()


def test_a_working_folder_that_vanishes_meanwhile(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "it.py").write_text(ENDING.format(how=f"import shutil; shutil.rmtree({str(gone)!r}, True)"))
    result = edgekit(
        "build", "it.py:factory", "-t", "ort-fp32,tflite-fp32", cwd=gone,
        env={"EDGEKIT_CACHE": str(tmp_path / "cache"), "WHERE": "factory"},
    )  # fmt: skip
    assert result.code in (2, 3), result.err
    assert "the working folder is gone" in result.err
    assert "Traceback" not in result.err


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


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    "command", [("build", "-t", "ort-fp32"), ("compress", "--recipe", "fold")], ids=lambda c: c[0]
)
def test_a_full_out_is_named_and_no_empty_folder_stays(command, root, tmp_path, small_disk):
    """What is delivered is copied from the cache, whose disk has room."""
    name, *options = command
    both = {"env": {"EDGEKIT_CACHE": str(tmp_path / "cache")}}
    source = f"{root}/tests/e2e/sources.py:tiny"
    assert edgekit(name, source, *options, "-o", tmp_path / "out", **both).code == 0
    (small_disk / "full").write_bytes(bytes(1 << 20))
    result = edgekit(name, source, *options, "-o", small_disk / "a" / "b", **both)
    assert result.code == 2, result.err
    assert f"cannot write to {small_disk}/a/b: No space left" in result.err
    assert [p.name for p in small_disk.iterdir()] == ["full"]


def test_a_full_tmpdir_is_named_as_such(root, tmp_path, small_disk):
    (small_disk / "full").write_bytes(bytes((1 << 20) - (12 << 10)))
    result = edgekit(
        "build", f"{root}/tests/e2e/sources.py:tiny", "-t", "ort-int8", "-o", tmp_path / "out",
        "--calib", f"{root}/tests/e2e/sources.py:wide",
        env={"EDGEKIT_CACHE": str(tmp_path / "cache"), "TMPDIR": str(small_disk)},
    )  # fmt: skip
    assert result.code == 2, result.err
    assert f"cannot write to {small_disk} (TMPDIR): " in result.err
    assert "Traceback" not in result.err
    assert [p.name for p in small_disk.iterdir() if not p.name.startswith("torchinductor")] == ["full"]
