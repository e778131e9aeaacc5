"""What all tests share: one cache a run, no network, and the folder with real data where there is one."""

from __future__ import annotations

import faulthandler
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True)  # a run can be repeated
settings.load_profile("fixed")

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["EDGEKIT_SPEED_GATE"] = (
    "false"  # no timed assertions; tests/e2e/test_plugin.py tests the gate itself
)
# A shell starts what it puts into the background deaf to Ctrl-C, and its children inherit that: tests send it to them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# So does nohup with SIGHUP.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Workers of one run share it (the controller sets it before they start); two runs do not.
os.environ.setdefault("EDGEKIT_CACHE", tempfile.mkdtemp(prefix="edgekit-tests-"))
os.environ["EDGEKIT_HISTORY"] = "off"  # nothing of a test is the user's; tests of the history name a file
# A benchmark takes the device's lock; tests that run side by side must not find each other busy.
os.environ["EDGEKIT_LOCK"] = f"-tests-{os.getpid()}"

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The source tree."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """Real data sets and weights; tests that need them skip where there are none."""
    folder = Path(os.environ.get("EDGEKIT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; EDGEKIT_DATA names their folder")
    return folder


_SATURATING = (
    "test_accuracy_is_kept[ort-int8]",
    "test_verify_runs_the_golden_vectors_again",
    "test_the_guard_takes_the_fragile_layers_out_of_int8",
    "test_a_user_can_name_the_layers",
    "test_int8_runs_in_int8",
    "test_the_artifact_takes_pixels_and_gives_what_the_source_gives[ort-int8]",
)


def pytest_collection_modifyitems(items):
    """What a processor without VNNI cannot give (sums of UINT8 x INT8 products saturate) is skipped there."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    saturates = platform.machine() == "x86_64" and not any(
        f in flags for f in ("avx512_vnni", "avx_vnni", "amx_int8")
    )
    for item in items:
        if saturates and item.name in _SATURATING:
            item.add_marker(
                pytest.mark.skip(reason="no VNNI here: UINT8 x INT8 sums saturate, INT8 is less exact")
            )


_died: set[str] = set()
_words = pytest.StashKey[TextIO]()


def _last_words(worker: str) -> Path:
    """Where a worker's process that crashes leaves what each of its threads was at."""
    return Path(os.environ["EDGEKIT_CACHE"]) / f"crash-{worker}.txt"


def pytest_sessionstart(session):
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker:  # pytest's own handler writes to a stream that the controller does not show
        _last_words(worker).parent.mkdir(parents=True, exist_ok=True)
        session.config.stash[_words] = _last_words(worker).open("w")
        faulthandler.enable(session.config.stash[_words])


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """A test whose worker process ended without a word runs once more, in another worker, and that is said.

    It happens once in a long run, to tests that start a process and pass alone.
    One that ends its worker twice fails.
    """
    if crashitem in _died:
        return
    _died.add(crashitem)
    sched.mark_test_pending(crashitem)
    report.outcome = "rerun"
    sys.stderr.write(f"\n{crashitem}: its worker process ended; it runs once more\n")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """How a worker's process ended, which pytest-xdist does not tell: below 0 it is the signal's number."""
    if error is None:
        return
    child = getattr(getattr(node.gateway, "_io", None), "popen", None)
    status = child.wait(10) if child else "unknown"
    words = _last_words(node.gateway.id)
    sys.stderr.write(
        f"\n{node.gateway.id}: its process (pid {getattr(child, 'pid', '?')}) ended with {status}\n"
        f"{words.read_text() if words.is_file() else ''}"
    )
