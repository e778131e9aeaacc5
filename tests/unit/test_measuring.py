"""What ends in an artifact's folder: complete measurements, partial ones, and what a killed run left."""

import json

import pytest

from edgekit.artifact import manifest, measure
from edgekit.devices.bench import processors
from edgekit.errors import UsageError
from edgekit.types import Measurement, Precision, SourceRecord, Target


@pytest.fixture
def artifact(tmp_path):
    (tmp_path / "m").write_bytes(b"model")
    manifest.write(
        manifest.Manifest(
            edgekit="0",
            status="passed",
            target=Target(name="t", backend="b", precision=Precision.FP32, runs_on="cpu", file="m"),
            source=SourceRecord(text="m", kind="onnx", sha256="0"),
            files=manifest.file_records(tmp_path, ("m",)),
        ),
        tmp_path,
    )
    return manifest.read(tmp_path)


def measured(device="pi", *, of=0, samples=((1.0, 1.1),)):
    facts = {"partial": {"processes": len(samples), "of": of, "why": "the link broke"}} if of else {}
    return Measurement(
        device=device,
        threads=1,
        samples=samples,
        import_ms=1,
        load_ms=1,
        first_ms=1,
        p50_ms=1,
        p90_ms=1,
        p99_ms=None,
        mad_ms=0,
        facts=facts,
    )


def raw(artifact):
    return json.loads((artifact.directory / measure.RAW).read_text())


def test_a_partial_measurement_is_kept_and_gives_way_to_a_complete_one(artifact):
    artifact = measure.record(artifact, measured(of=10))
    assert artifact.manifest.measurements[0].facts["partial"]["of"] == 10
    expected = {"pi": {"processes": 1, "of": 10, "why": "the link broke", "samples": [[1.0, 1.1]]}}
    assert raw(artifact) == {measure.PARTIAL: expected}
    artifact = measure.record(artifact, measured(samples=((2.0,),)))
    assert raw(artifact) == {"pi": [[2.0]]}
    (entry,) = manifest.read(artifact.directory).manifest.measurements
    assert "partial" not in entry.facts


def test_a_partial_measurement_takes_no_complete_ones_place(artifact):
    artifact = measure.record(artifact, measured())
    artifact = measure.record(artifact, measured("jetson", of=10))
    after = measure.record(artifact, measured(of=10, samples=((9.0,),)))
    assert [("partial" in m.facts) for m in after.manifest.measurements] == [False, True]
    assert raw(after)["pi"] == [[1.0, 1.1]]
    assert set(raw(after)[measure.PARTIAL]) == {"pi", "jetson"}


def test_the_journal_of_a_killed_run_is_kept(artifact):
    def line(task, *samples, device="pi"):
        entry = {"device": device, "task": task, "variant": task[-1], "result": {"samples_ms": samples}}
        return json.dumps(entry) + "\n"

    text = line("0-0-A", 1.0) + line("0-1-B", 2.0) + line("0-2-B", 3.0) + line("0-0-A", 4.0, device="nuc")
    (artifact.directory / measure.JOURNAL).write_text(text + '{"device": "pi", "task": "0-3')
    measure._recover(artifact)
    found = raw(artifact)[measure.PARTIAL]
    assert found["pi"]["samples"] == [[2.0], [3.0]]  # of this artifact: the baseline is not its own
    assert found["nuc"]["samples"] == [[4.0]]
    assert not (artifact.directory / measure.JOURNAL).exists()
    measure._recover(artifact)


def test_an_interrupt_that_does_not_wait_loses_nothing(artifact, monkeypatch):
    """Ctrl-C twice: the devices' threads do not come to say what they have."""

    def bench_devices(variants, devices, *, settings):
        settings.on_partial(measured(of=10))
        for device in ("pi", "nuc"):
            entry = {"device": device, "task": "0-0-A", "variant": "A", "result": {"samples_ms": [3.0]}}
            with settings.keep.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "timeable", lambda artifact: None)
    monkeypatch.setattr(measure, "bench_devices", bench_devices)
    with pytest.raises(KeyboardInterrupt) as caught:
        measure.measure([artifact])
    found = raw(artifact)[measure.PARTIAL]
    assert (found["pi"]["samples"], found["nuc"]["samples"]) == ([[1.0, 1.1]], [[3.0]])
    assert "1 of 10 processes on pi" in caught.value.__notes__[0]
    assert "1 processes on nuc" in caught.value.__notes__[1]


@pytest.mark.parametrize(
    ("text", "numbers"), [("0", (0,)), ("0-3", (0, 1, 2, 3)), ("4-5,0, 4", (0, 4, 5)), ("7-7", (7,))]
)
def test_processors(text, numbers):
    assert processors(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "0,,1", "0x1", "²"])
def test_no_processors(text):
    with pytest.raises(UsageError):
        processors(text)
