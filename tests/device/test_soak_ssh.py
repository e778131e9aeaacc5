"""A long run over SSH is the same as here: under the supervisor, with what the device says of its clock."""

from pathlib import Path

import numpy as np
import pytest

from edgekit.artifact import soak as judged
from edgekit.devices.runnable import Runnable
from edgekit.devices.soak import SoakSettings, soak
from edgekit.types import Device, Verdict

pytestmark = pytest.mark.device

FAKE = Path(__file__).parents[1] / "unit" / "fake_runner.py"


@pytest.mark.parametrize(("behaviour", "verdict"), [("sleep-0.001", Verdict.PASS), ("leaks", Verdict.FAIL)])
def test_a_leak_is_found_over_ssh(behaviour, verdict, sshd, monkeypatch, tmp_path):
    monkeypatch.setattr("edgekit.devices.pack.runner", lambda backend: FAKE)
    (tmp_path / "m").write_text(behaviour)
    runnable = Runnable(
        backend="fake", main=tmp_path / "m", inputs={"x": np.ones(3, "f")}, options={"threads": 1}
    )
    options = {"config": str(sshd.config), "python": sshd.python, "connect_s": 60}
    board = Device(name="board", transport="ssh", address="device", options=options)
    told = []
    done = soak(runnable, board, SoakSettings(seconds=3, reloads=12, on_progress=told.append))
    gates = {g.name: g for g in judged.gates(done)}
    assert gates["memory-slope"].verdict is verdict, gates["memory-slope"].message
    assert gates["reload-slope"].verdict is Verdict.PASS
    assert (done.device, told[-1]) == ("board", 3)
