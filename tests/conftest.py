"""What all tests share: one cache a run, no network, and the folder with real data where there is one."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

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
# Workers of one run share it (the controller sets it before they start); two runs do not.
os.environ.setdefault("EDGEKIT_CACHE", tempfile.mkdtemp(prefix="edgekit-tests-"))
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
