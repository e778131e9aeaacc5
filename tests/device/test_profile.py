"""Profiles on the real runtimes: every operator that multiplies is there, timed, with its module."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from edgekit import Options, build
from edgekit.artifact.profile import profile_artifact
from edgekit.cli import cli
from edgekit.quantize.calibrate.codes import CODES
from edgekit.types import Device

pytestmark = pytest.mark.device

TARGETS = ("ort-fp32", "ort-int8", "openvino-fp32", "openvino-int8", "tflite-fp32", "tflite-int8")


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 16, 3, padding=1)
            self.body = torch.nn.Conv2d(16, 32, 3, padding=1)
            self.head = torch.nn.Linear(32, 10)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.head(torch.relu(self.body(x)).mean((2, 3)))

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(folder / "cache"))
        result = build(
            Net().eval(),
            torch.randn(1, 3, 16, 16),
            targets=TARGETS,
            calibration=[
                # Each at a level of its own: of noise alone the network always says the same.
                (np.random.default_rng(i).normal(size=(1, 3, 16, 16)) + np.linspace(-2, 2, 8)[i]).astype("f")
                for i in range(8)
            ],
            out=folder / "out",
            options=Options(speed_gate=False, accept_data=CODES, device="local"),
        )
    return {a.target: a for a in result.raise_for_failures().artifacts}


@pytest.mark.parametrize("target", TARGETS)
def test_every_layer_is_timed_and_known_by_its_module(target, artifacts):
    found = profile_artifact(artifacts[target], runs=8, warmup=2)
    timed = {o.module for o in found.operators if o.us is not None}
    assert {"stem", "body", "head"} <= timed
    assert sum(o.share for o in found.operators) == pytest.approx(1)
    assert found.by_module()["body"] > 0
    body = next(o for o in found.operators if o.module == "body")
    assert body.precision.lower() in (
        ("uint8", "int8", "u8", "i8") if "int8" in target else ("float32", "f32")
    )
    assert found.whole_us > 0


def test_the_command(artifacts):
    directory = str(artifacts["tflite-int8"].directory)
    shown = CliRunner().invoke(cli, ["profile", directory, "--runs", "4", "--sort"])
    assert shown.exit_code == 0, shown.output
    assert "XNNPACK: Convolution" in shown.output
    sums = CliRunner().invoke(cli, ["profile", directory, "--runs", "4", "--by-module"])
    assert "body" in sums.output
    document = json.loads(CliRunner().invoke(cli, ["profile", directory, "--runs", "4", "--json"]).stdout)
    operators = document["profile"]["operators"]
    assert {"CONV_2D", "FULLY_CONNECTED", "QUANTIZE"} <= {o["op"] for o in operators}


def test_a_board_whose_runtime_tells_no_times_says_so(artifacts):
    from testbed import oldboard

    if oldboard.problem():
        pytest.skip(oldboard.problem())
    device = Device(name="old", options={"python": str(oldboard.python())})
    found = profile_artifact(artifacts["tflite-fp32"], device=device, runs=4)
    assert all(o.us is None and o.share is None for o in found.operators)
    assert {o.placed for o in found.operators} == {"XNNPACK"}
    assert any("no times by operator" in note for note in found.notes)
    assert {"stem", "body", "head"} <= {o.module for o in found.operators}


def test_over_ssh(artifacts, make_sshd):
    sshd = make_sshd(environment={"EDGEKIT_LOCK": "profile"})
    options = {"config": str(sshd.config), "python": sshd.python}
    device = Device(name="board", transport="ssh", address="device", options=options)
    found = profile_artifact(artifacts["ort-int8"], device=device, runs=4)
    assert found.device == "board"
    assert {"stem", "body", "head"} <= {o.module for o in found.operators}
    assert sshd.settled() == ([], [])
