"""Many devices at once: every result comes back, the host has little to do, nothing is left."""

import resource
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices.bench import BenchSettings, Comparison, bench_devices
from edgekit.devices.runnable import Runnable
from edgekit.errors import UnreachableError, UsageError
from edgekit.types import Device, Measurement

pytestmark = pytest.mark.device

FAKE = Path(__file__).parents[1] / "unit" / "fake_runner.py"


@pytest.fixture
def variant(monkeypatch, tmp_path):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)
    (tmp_path / "m").write_text("slow")
    return Runnable(
        backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3, "f")}, options={"threads": 1}
    )


@pytest.fixture
def make_fleet():
    import contextlib

    from testbed.fleet import fleet
    from testbed.sshd import MissingToolError

    with contextlib.ExitStack() as stack:

        def start(count):
            try:
                return stack.enter_context(fleet(count))
            except MissingToolError as error:
                pytest.skip(str(error))

        yield start


def board(server, name):
    options = {"config": str(server.config), "python": server.python, "connect_s": 60}
    return Device(name=name, transport="ssh", address="device", options=options)


def test_one_that_fails_does_so_alone(make_fleet, variant):
    servers = make_fleet(2)
    servers[1].stop()
    boards = [board(s, f"b{i}") for i, s in enumerate(servers)]
    told = []
    settings = BenchSettings(
        processes=2, seconds=0.1, iterations=3, warmup_s=0.1, on_progress=lambda *n: told.append(n)
    )
    found = bench_devices([variant, variant], boards, settings=settings)
    assert isinstance(found["b0"], Comparison)
    assert isinstance(found["b1"], UnreachableError)
    assert told[-1] == (4, 8)
    assert servers[0].settled() == ([], [])


def test_devices_do_not_share_a_lock(make_fleet, variant):
    servers = make_fleet(2)
    boards = [board(s, f"b{i}") for i, s in enumerate(servers)]
    settings = BenchSettings(processes=1, seconds=2.0, iterations=3, warmup_s=0.1)
    found = bench_devices([variant], boards, settings=settings)
    assert all(isinstance(m, Measurement) for m in found.values())


def test_more_than_two_artifacts_are_refused(variant):
    with pytest.raises(UsageError):
        bench_devices([variant] * 3, [])


def host_seconds():
    """CPU time of this process and of its clients that have ended (the devices' servers have not)."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


@pytest.mark.slow
def test_sixteen_at_once(make_fleet, variant):
    servers = make_fleet(16)
    boards = [board(s, f"b{i:02}") for i, s in enumerate(servers)]
    settings = BenchSettings(processes=2, seconds=10.0, iterations=3, warmup_s=0.1)
    start, before = time.monotonic(), host_seconds()
    found = bench_devices([variant], boards, settings=settings)
    share = (host_seconds() - before) / (time.monotonic() - start)
    print(f"the host side of 16 devices took {share:.1%} of a core")
    assert [name for name, m in found.items() if isinstance(m, Measurement)] == [b.name for b in boards]
    assert all(len(m.samples) == 2 for m in found.values())
    assert share < 0.5
    assert all(server.settled() == ([], []) for server in servers)
