"""``edgekit build --device`` for TensorRT, end to end over a real sshd; TensorRT there is a stand-in that computes with
ONNX Runtime (``tools/testbed/standins/README.md``)."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import edgekit
from edgekit import Options, build
from edgekit.artifact.summary import verdict
from edgekit.core.progress import Reporter, watching
from edgekit.devices import catalogue
from edgekit.devices.catalogue import Row
from edgekit.errors import UntrustedEngineError
from edgekit.quantize.calibrate.codes import CODES
from edgekit.types import Verdict

pytestmark = pytest.mark.device


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def jetson():
    from testbed.jetson import Jetson
    from testbed.sshd import MissingToolError

    try:
        with Jetson() as server:
            catalogue.write(
                Row(name="jetson", address="device", config=str(server.config), python=server.python)
            )
            yield server
    except MissingToolError as error:
        pytest.skip(str(error))


def network():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 4)]
    return torch.nn.Sequential(*layers, *head).eval(), torch.randn(1, 3, 12, 12)


def made(evaluation=None, **options):
    module, example = network()
    samples = [np.random.default_rng(i).normal(size=(1, 3, 12, 12)).astype("f") for i in range(16)]
    settings = Options(speed_gate=False, accept_data=CODES, allow_not_run=True, **options)
    result = build(
        module,
        example,
        targets="tensorrt-int8",
        calibration=samples,
        evaluation=evaluation,
        options=settings,
    )
    (artifact,) = result.raise_for_failures().artifacts
    return artifact


def builds(server):
    return sum(entry["call"] == "build" for entry in server.asked())


def test_the_engine_is_built_run_and_gated_there(jetson, tmp_path, monkeypatch):
    artifact = made(device="jetson")
    manifest = artifact.manifest
    names = [f.name for f in manifest.files]
    assert manifest.status == "passed"
    assert names[:4] == ["model.engine", "engine.json", "layers.json", "build.log"]
    assert manifest.placement.share > 0.9
    assert manifest.minimum_runtime == "10.3.0"
    assert any("weakly typed network (int8, fp16 allowed)" in note for note in manifest.notes)
    assert artifact.verify(device="jetson").status == "passed"
    assert builds(jetson) == 1
    profile = artifact.profile(device="jetson", runs=4, trust=False)
    assert profile.device == "jetson"
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "a stranger's"))
    with pytest.raises(UntrustedEngineError):
        artifact.verify(device="jetson")
    claimed = artifact.verify(device="jetson", options=Options(trust=True))
    assert claimed.status == "unproven"  # its placement is what the manifest says, and nobody here built it
    assert "placement" in claimed.claimed
    assert jetson.settled() == ([], [])


def test_without_a_device_it_is_checked_and_built_at_first_use(jetson):
    artifact = made()
    assert artifact.manifest.status == "not-run"
    assert verdict(artifact.manifest).startswith("checked, not run: ")
    told = []
    with watching(Reporter(told.append)):
        assert artifact.verify(device="jetson").status == "passed"
    assert ("build the engine on jetson", 100) in {(e.text, e.done) for e in told}
    again = edgekit.open(artifact.directory)
    assert (again.manifest.status, builds(jetson)) == ("passed", 1)
    assert again.manifest.placement.share > 0.9  # counted there, as it is in a build on the device
    verdicts = {g.name: g.verdict for g in again.manifest.gates}
    assert verdicts["placement"] is Verdict.PASS
    assert Verdict.NOT_RUN not in verdicts.values()
    bench = again.bench(device="jetson", settings=edgekit.BenchSettings(processes=2, seconds=0.05))
    (measured,) = bench.raise_for_failures().measured
    assert measured.measurement.facts["gpu_p50_ms"] > 0
    assert builds(jetson) == 1
    assert jetson.settled() == ([], [])


def test_what_was_never_measured_does_not_pass(jetson):
    """Labels were there when it was built, and nothing ran it: golden vectors have none."""
    samples = [np.random.default_rng(i).normal(size=(1, 3, 12, 12)).astype("f") for i in range(40)]
    module, _ = network()
    labelled = [(x, int(module(torch.from_numpy(x)).argmax())) for x in samples]
    artifact = made(evaluation=labelled)
    verdicts = {g.name: g.verdict for g in artifact.manifest.gates}
    assert verdicts["metric-drop"] is Verdict.NOT_RUN
    result = artifact.verify(device="jetson")
    (gate,) = [g for g in result.gates if g.name == "metric-drop"]
    assert (result.status, gate.verdict) == ("unproven", Verdict.UNPROVEN)
    assert "golden vectors do not tell it" in gate.message
    again = edgekit.open(artifact.directory)
    assert again.manifest.status == "unproven"
    assert "metric-drop" in verdict(again.manifest)
    told = again.verify(device="jetson", evaluation=labelled, source=module)
    (gate,) = [g for g in told.gates if g.name == "metric-drop"]
    assert "accuracy" in gate.message


def test_what_only_trtexec_built_is_not_run(jetson):
    jetson.behave(no_python=True)
    artifact = made(device="jetson")
    assert artifact.manifest.status == "not-run"
    assert "engine built by trtexec of TensorRT 10.3.0" in verdict(artifact.manifest)
    assert artifact.manifest.files[0].name == "model.engine"


@pytest.mark.parametrize("words", ["Error Code 2: OutOfMemory (requested size was 9 bytes)", "no tactics"])
def test_what_fails_to_build_there_is_no_fault_of_the_artifact(jetson, words):
    """At first use as in a build: the builder's words, and the end of its log."""
    artifact = made()
    jetson.behave(fails=words)
    command = [sys.executable, "-m", "edgekit", "verify", str(artifact.directory), "--device", "jetson"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    said = done.stderr
    assert words in said
    assert "the last lines of its log" in said
    assert "damaged" not in said
    assert "sender" not in said
