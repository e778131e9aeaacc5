"""The last stage: where an artifact ends, what it replaces, and what counts as built."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pipeline_fakes as fakes
import pytest
from pipeline_fakes import Fake, samples, target

from edgekit.artifact import manifest
from edgekit.devices.target_device import TargetDevice
from edgekit.devices.wire import DeviceFacts
from edgekit.errors import GateFailedError, NotRunnableError, RuntimeMissingError
from edgekit.pipeline import build, request
from edgekit.pipeline.refusal import refusal
from edgekit.types import Adaptation, Device, Gate, Measurement, Verdict

A8 = target("a-int8")


@pytest.fixture
def fake(monkeypatch):
    fake = Fake()
    fakes.install(monkeypatch, fake, (A8, target("a-fp32")))
    return fake


def run(tmp_path, rows=(A8,), **options):
    asked, context = fakes.request(tmp_path, rows, samples(), speed_gate=False, **options)
    return build.run(asked, context)[0].artifact


def again(fake, noise):
    """Another build of the same source: what the runtime answers is changed, so the lowered file must be."""
    fake.noise["a-int8"] = noise


def test_one_that_fails_takes_the_place_of_one_that_passed_and_back(tmp_path, fake):
    out = tmp_path / "out"
    assert run(tmp_path).directory == out / "a-int8"
    again(fake, 3.0)
    assert run(tmp_path, exclude=("x",)).directory == out / "a-int8.failed"
    assert [p.name for p in out.iterdir()] == ["a-int8.failed"]
    again(fake, 0.0)
    assert run(tmp_path, exclude=("y",)).directory == out / "a-int8"
    assert [p.name for p in out.iterdir()] == ["a-int8"]


def test_a_folder_of_that_name_that_is_no_artifact_stays(tmp_path, fake):
    (tmp_path / "out" / "a-int8.failed").mkdir(parents=True)
    (tmp_path / "out" / "a-int8.failed" / "notes.txt").write_text("mine")
    run(tmp_path)
    assert (tmp_path / "out" / "a-int8.failed" / "notes.txt").read_text() == "mine"


def test_an_equal_artifact_keeps_its_measurements_and_a_damaged_one_is_replaced(tmp_path, fake):
    figures = {"import_ms": 1.0, "load_ms": 1.0, "first_ms": 1.0, "p50_ms": 1.0, "p90_ms": 1.0, "mad_ms": 0.1}
    measured = Measurement(device="local", threads=1, samples=(), p99_ms=None, **figures)
    manifest.with_measurements(run(tmp_path), (measured,))
    assert run(tmp_path).manifest.measurements == (measured,)
    (tmp_path / "out" / "a-int8" / "model.bin").write_text("damaged")
    artifact = run(tmp_path)
    manifest.check_files(artifact)
    assert artifact.manifest.measurements == ()
    (tmp_path / "out" / "a-int8" / "manifest.json").write_text("{")
    manifest.check_files(run(tmp_path))


def test_the_manifest_says_what_was_done(tmp_path, fake):
    m = run(tmp_path, set={}).manifest
    assert m.source.text == "net"
    assert m.files[0].name == "model.bin"
    assert (m.golden.file, m.golden.samples, m.golden.parity.samples) == ("golden.npz", 4, 4)
    assert m.details["modules"] == {"node": "net.layer"}
    assert m.details["codes"] == [1]
    assert m.details["quantization"]["method"] == "auto"
    assert m.notes == ("lowered",)
    assert m.calibration.samples == 4
    assert m.task == "classification"
    assert m.runtime_versions == {"runtime": "1"}


def gate(verdict):
    return Gate(name="snr", verdict=verdict, message="why")


def test_only_what_passed_counts(tmp_path, fake):
    artifact = run(tmp_path)

    def refused(*verdicts, allow_not_run=False, strict=False):
        gates = tuple(map(gate, verdicts))
        status = manifest.status_of(gates)
        judged = replace(artifact, manifest=replace(artifact.manifest, status=status, gates=gates))
        return refusal(judged, allow_not_run=allow_not_run, strict=strict)

    assert refused(Verdict.PASS) is None
    assert refused(Verdict.UNPROVEN) is None
    for verdicts in ((Verdict.FAIL,), (Verdict.PASS, Verdict.FAIL), (Verdict.UNPROVEN,)):
        error = refused(*verdicts, allow_not_run=True, strict=True)
        assert isinstance(error, GateFailedError)
        assert error.exit_code == 5
        assert "snr: why" in error.message
    assert isinstance(refused(Verdict.NOT_RUN), NotRunnableError)
    assert isinstance(refused(), NotRunnableError)
    assert refused(Verdict.NOT_RUN, allow_not_run=True) is None


# --- a device ----------------------------------------------------------------------------------------------


def there(**facts):
    runtime = SimpleNamespace(versions={"a": "9"}, problem="", hint="")
    facts = {
        "python": "3.11",
        "arch": "aarch64",
        "isa": ("neon",),
        "processor": "Cortex",
        "os": "Linux 6",
        **facts,
    }
    return TargetDevice(
        device=Device(name="pi", transport="ssh", address="pi"),
        facts=DeviceFacts(**facts),
        runtimes={"a": runtime},
    )


@pytest.fixture
def visited(monkeypatch):
    def found(result):
        for module in (build, request):
            monkeypatch.setattr(module, "device", lambda name: result.device)
        monkeypatch.setattr(build, "probe", lambda where, backends: result)

    return found


ADAPTED = replace(
    A8, on=(Adaptation(why="no dot products", arch="aarch64", lacks=("dotprod",), weight_bits=7),)
)


def test_an_artifact_for_a_device_is_quantized_for_it_and_run_there(tmp_path, fake, visited):
    visited(there())
    asked, context = fakes.request(tmp_path, (ADAPTED,), samples(), speed_gate=False, device="pi")
    m = build.run(asked, context)[0].artifact.manifest
    assert m.target.scheme.weight_bits == 7
    assert m.machine["device"] == "pi"
    assert "run on pi (aarch64)" in m.notes
    assert "no dot products" in m.notes
    assert "a-int8 on pi: no dot products" in context.progress.notes


def test_on_an_emulated_processor_results_count_and_times_do_not(tmp_path, fake, visited):
    visited(there(emulated=True))
    asked, context = fakes.request(tmp_path, (A8,), samples(), speed_gate=True, device="pi")
    m = build.run(asked, context)[0].artifact.manifest
    assert any("emulated processor" in n for n in m.notes)
    assert "speed" not in {g.name for g in m.gates}


def test_a_device_without_python_is_quantized_for_and_verified_here(tmp_path, fake, visited):
    visited(there(python=""))
    asked, context = fakes.request(tmp_path, (ADAPTED,), samples(), speed_gate=False, device="pi")
    m = build.run(asked, context)[0].artifact.manifest
    assert m.target.scheme.weight_bits == 7
    assert "device" not in m.machine
    assert any("verified here" in n for n in context.progress.notes)


def test_a_runtime_that_the_device_lacks_is_told_before_anything_is_quantized(tmp_path, fake, visited):
    bare = there()
    bare.runtimes["a"] = SimpleNamespace(versions={}, problem="not installed", hint="prepare it")
    visited(bare)
    asked, context = fakes.request(tmp_path, (A8,), samples(), speed_gate=False, device="pi")
    outcome = build.run(asked, context)[0]
    assert isinstance(outcome.error, RuntimeMissingError)
    assert "calibrate" not in fake.done
