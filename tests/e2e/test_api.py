"""The public API: the same line from Python."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from edgekit.quantize.calibrate.codes import CODES

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("api")]


@pytest.fixture
def module():
    import torch
    from torch import nn

    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


@pytest.fixture
def example():
    import torch

    return torch.randn(1, 3, 8, 8)


def samples(count=24, size=8):
    generator = np.random.default_rng(2)
    return [generator.standard_normal((1, 3, size, size)).astype(np.float32) for _ in range(count)]


def made(*arguments, **named):
    import edgekit

    return edgekit.build(*arguments, **named).raise_for_failures().artifacts


def test_a_module_and_samples_to_artifacts(module, example, tmp_path):
    artifacts = made(module, example, targets=["ort-int8", "ort-fp32"], calibration=samples(), out=tmp_path)
    assert [a.target for a in artifacts] == ["ort-int8", "ort-fp32"]
    assert all(a.passed for a in artifacts)
    assert artifacts[0].manifest.calibration.samples == 24
    assert artifacts[0].directory == tmp_path / "ort-int8"
    assert artifacts[0].model.stat().st_size < 2 * artifacts[1].model.stat().st_size


def test_one_name_and_the_first_sample_as_example(module, tmp_path):
    """The example inputs are the first calibration sample, which is calibrated with all the same."""
    from edgekit.errors import SourceError

    (artifact,) = made(module, targets="ort-int8", calibration=samples(), out=tmp_path)
    assert artifact.manifest.inputs[0].shape == (1, 3, 8, 8)
    (once,) = made(module, targets="ort-int8", calibration=iter(samples()), out=tmp_path)
    assert once.manifest.calibration == artifact.manifest.calibration
    with pytest.raises(SourceError, match="without example inputs"):
        made(module, targets="ort-fp32", out=tmp_path)


def test_a_generator_and_labels(module, example, tmp_path):
    import torch

    import edgekit

    module.eval()
    labelled = [(s, int(module(torch.from_numpy(s)).argmax())) for s in samples()]
    (artifact,) = made(
        module,
        (example,),
        targets=["ort-int8"],
        calibration=(s for s in samples()),
        evaluation=labelled,
        out=tmp_path,
        options=edgekit.Options(max_drop=0.5, speed_gate=False),
    )
    assert artifact.manifest.parity.reference_metric == 1.0


def test_a_torch_model_keeps_what_it_declares(module, example, tmp_path):
    import edgekit

    model = edgekit.TorchModel(
        module=module, example_inputs={"input": example}, task="classification", labels=tuple("abcde")
    )
    (artifact,) = made(model, targets="ort-fp32", out=tmp_path)
    assert artifact.manifest.inputs[0].name == "input"
    assert artifact.manifest.labels == tuple("abcde")
    assert artifact.manifest.task == "classification"


def test_what_is_declared_is_part_of_the_identity(module, example, tmp_path):
    """The same weights with other class names: not the artifact of before from the cache."""
    import edgekit

    plain = edgekit.TorchModel(module=module, example_inputs={"input": example})
    (first,) = made(plain, targets="ort-fp32", out=tmp_path / "first")
    named = edgekit.TorchModel(module=module, example_inputs={"input": example}, labels=tuple("abcde"))
    (second,) = made(named, targets="ort-fp32", out=tmp_path / "second")
    assert (first.manifest.labels, second.manifest.labels) == ((), tuple("abcde"))
    (third,) = made(module, 2 * example, targets="ort-fp32", out=tmp_path / "third")
    inputs = [next(iter(golden(a)[0].values())) for a in (first, third)]
    np.testing.assert_allclose(inputs[1], 2 * inputs[0])


def golden(artifact):
    from edgekit.artifact import golden

    return golden.read(artifact.directory / artifact.manifest.golden.file)[0]


def test_an_exported_program(module, example, tmp_path):
    import torch

    program = torch.export.export(module.eval(), (example,))
    (artifact,) = made(program, targets="ort-fp32", out=tmp_path)
    assert artifact.passed


@pytest.mark.parametrize("source", [3, None, ["a"]])
def test_what_is_no_source_is_refused(source, tmp_path):
    from edgekit.errors import UsageError

    with pytest.raises(UsageError, match="is no source"):
        made(source, targets="ort-fp32", out=tmp_path)


def test_wrong_arguments_are_named(module, example, tmp_path):
    import edgekit
    from edgekit.errors import ConfigError, UnknownNameError, UnknownOptionError, UsageError

    with pytest.raises(UnknownNameError) as error:
        made(module, example, targets="ort-in8", out=tmp_path)
    assert "ort-int8" in error.value.nearest
    with pytest.raises(ConfigError, match="target"):
        made(module, example, targets=3, out=tmp_path)
    with pytest.raises(UsageError, match="no target"):
        made(module, example, out=tmp_path)
    with pytest.raises(UnknownOptionError):
        edgekit.Options.load({"max_dorp": 0.1})
    with pytest.raises(UsageError, match="brings its own example inputs"):
        made("model.py:factory", example, targets="ort-fp32", out=tmp_path)


def test_weights_are_part_of_the_identity(module, example, tmp_path):
    import torch

    (first,) = made(module, example, targets=["ort-fp32"], out=tmp_path)
    with torch.no_grad():
        module[0].weight[0, 0, 0, 0] += 1.0
    (second,) = made(module, example, targets=["ort-fp32"], out=tmp_path)
    assert first.manifest.source.sha256 != second.manifest.source.sha256
    assert first.manifest.files[0].sha256 != second.manifest.files[0].sha256


def test_python_code_is_part_of_the_identity(tmp_path):
    import torch

    class Scaled(torch.nn.Module):
        factor = 2.0

        def forward(self, x):
            return x * self.factor

    module = Scaled()
    (first,) = made(module, torch.ones(1, 3), targets=["ort-fp32"], out=tmp_path)
    module.factor = 3.0
    (second,) = made(module, torch.ones(1, 3), targets=["ort-fp32"], out=tmp_path)
    assert second.passed
    assert first.manifest.files[0].sha256 != second.manifest.files[0].sha256


def test_those_that_passed_are_not_lost_when_another_fails(module, example, tmp_path):
    import edgekit
    from edgekit.errors import GateFailedError

    result = edgekit.build(
        module,
        example,
        targets=["ort-int8", "ort-fp32"],
        calibration=[1e-4 * s for s in samples()],
        evaluation=samples(),
        out=tmp_path,
        options=edgekit.Options(accept_data=CODES, speed_gate=False),
    )
    (artifact,), (failure,) = result.artifacts, result.failures
    assert (artifact.target, artifact.passed) == ("ort-fp32", True)
    assert (failure.target, failure.artifact.passed) == ("ort-int8", False)
    assert failure.artifact.directory == tmp_path / "ort-int8.failed"
    with pytest.raises(GateFailedError) as error:
        result.raise_for_failures()
    assert "snr" in error.value.gates
    assert error.value.__notes__ == [f"passed: ort-fp32 in {tmp_path / 'ort-fp32'}"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ort-fp32", "ort-int8.failed"]
    text = repr(result)
    assert "1 passed, 1 failed" in text
    assert len(text.splitlines()) < 10
    assert "<table>" in result._repr_html_()


def test_progress_is_told_to_a_function(module, example, tmp_path):
    import edgekit

    events = []
    made(
        module,
        example,
        targets="tflite-int8",
        calibration=samples(),
        out=tmp_path,
        progress=events.append,
        options=edgekit.Options(speed_gate=False, samples=17),
    )
    calibrate = [e for e in events if e.text == "calibrate"]
    kinds = [e.kind for e in calibrate]
    assert kinds == ["start", *["advance"] * 17, "end"]
    assert [(e.done, e.total) for e in calibrate][-2:] == [(17, 17), (17, 17)]


def test_everything_that_an_artifact_can_do(module, example, tmp_path):
    import torch

    import edgekit
    from edgekit.errors import DataError

    options = edgekit.Options(out=tmp_path, speed_gate=False)
    made(module, example, targets=["ort-int8", "ort-fp32"], calibration=samples(), options=options)
    artifact, sibling = edgekit.open(tmp_path / "ort-int8"), edgekit.open(str(tmp_path / "ort-fp32"))
    assert artifact == edgekit.open(artifact.directory / "manifest.json")

    name = sibling.manifest.inputs[0].name
    with torch.inference_mode():
        expected = [module.eval()(torch.from_numpy(s)).numpy() for s in samples(3)]
    for inputs in (samples(3), [{name: s} for s in samples(3)]):
        outputs = [next(iter(o.values())) for o in sibling.predict(inputs)]
        np.testing.assert_allclose(outputs, expected, atol=1e-5)
    with pytest.raises(DataError, match=f"takes {name}"):
        list(sibling.predict([{"other": s} for s in samples(1)]))
    with pytest.raises(DataError, match="list"):
        list(sibling.predict([[1, 2]]))

    assert sibling.verify().status == "passed"
    assert artifact.verify().parity.snr_db > 5
    figures = artifact.bench(
        baseline=sibling, settings=edgekit.BenchSettings(processes=2, seconds=0.02)
    ).raise_for_failures()
    assert figures.measured[0].comparison.difference.verdict in (
        "faster",
        "slower",
        "no detectable difference",
    )
    assert edgekit.open(artifact.directory).manifest.measurements[0].device == "local"
    assert sum(o.share or 0 for o in artifact.profile(runs=8).operators) == pytest.approx(1)
    assert artifact.inspect().operators["QuantizeLinear"] > 0
    difference = artifact.diff(sibling)
    assert difference.output_db > 5
    assert len(repr(difference)) < 200
    spec = edgekit.PackageSpec(format="bundle", name="com.example.five", version="1.0.0", license="MIT")
    assert artifact.package(spec, tmp_path / "package").files

    text = repr(artifact)
    assert text == f"Artifact('ort-int8', passed, {str(artifact.directory)!r})"


def test_calibrate(module, example, tmp_path):
    import edgekit

    result = edgekit.calibrate(module, example, calibration=samples())
    assert result.samples == 24
    low, high = result.calibration.range(next(iter(result.calibration.tensors)), "percentile")
    assert low < high
    shifted = edgekit.calibrate(
        module, example, calibration=[s + 40 for s in samples()], evaluation=samples()
    )
    assert "error" in {f.severity for f in shifted.findings}
    with pytest.raises(edgekit.EdgekitError, match="nothing to calibrate with"):
        edgekit.calibrate(module, example)
    assert len(repr(result)) < 100


def test_compress(tmp_path, root):
    import edgekit
    from edgekit.errors import UsageError

    events = []
    source = f"{root}/tests/e2e/sources.py:tiny"
    result = edgekit.compress(
        source, recipe="prune(sparsity=0.5)", out=tmp_path / "plan", progress=events.append
    )
    assert (result.folder / "recipe.toml").is_file()
    assert result.steps[0].after.nonzero < result.steps[0].before.nonzero
    assert events
    (artifact,) = made(str(result.folder), targets="ort-fp32", out=tmp_path / "build")
    assert artifact.passed
    with pytest.raises(UsageError, match="a recipe, or a budget"):
        edgekit.compress(source)
    with pytest.raises(UsageError, match="object in memory"):
        edgekit.compress(object(), recipe="prune")


def test_the_function_and_the_package_of_one_name():
    code = """
import edgekit
assert callable(edgekit.compress)
import edgekit.compress.recipes as recipes
from edgekit.compress import plan
from edgekit import compress
assert edgekit.compress is compress and callable(compress) and compress.recipes is recipes
import edgekit.pipeline.build
assert callable(edgekit.compress) and callable(edgekit.build) and callable(edgekit.open)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_builds_of_several_threads_wait_for_each_other(module, example, tmp_path, root):
    """Two at once would record each other's files and find each other's modules."""
    import edgekit

    source = f"{root}/tests/e2e/sources.py:tiny"
    options = edgekit.Options(speed_gate=False)
    alone = made(source, targets="ort-fp32", out=tmp_path / "alone", options=options)[0]
    running, most, results = set(), [], {}

    def listen(name):
        def told(event):
            if event.kind == "start":
                running.add(name)
                most.append(len(running))

        return told

    def work(name):
        (results[name],) = made(
            source if name % 2 else module,
            None if name % 2 else example,
            targets="ort-fp32",
            out=tmp_path / str(name),
            options=options,
            progress=listen(name),
        )
        running.discard(name)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) <= {1}
    assert {results[n].manifest.source.sha256 for n in (1, 3)} == {alone.manifest.source.sha256}
    assert results[0].manifest.digest == results[2].manifest.digest
    assert results[1].manifest.digest == alone.manifest.digest


def test_artifacts_are_run_side_by_side(module, example, tmp_path):
    (artifact,) = made(module, example, targets="ort-fp32", out=tmp_path)
    expected = [next(iter(o.values())) for o in artifact.predict(samples(4))]
    outputs = {}

    def work(number):
        outputs[number] = [next(iter(o.values())) for o in artifact.predict(samples(4))]
        assert artifact.verify().status == "passed"

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        np.testing.assert_array_equal(outputs[number], expected)


def test_what_a_target_cannot_express_is_said_before_calibration(tmp_path, monkeypatch):
    import torch

    import edgekit
    from edgekit.errors import UnsupportedOperatorsError
    from edgekit.pipeline import stages

    class Places(torch.nn.Module):
        def forward(self, x):
            return torch.nonzero(x).float().sum(0)

    def calibrate(*_):
        raise AssertionError("calibrated for a target that cannot be built")

    monkeypatch.setattr(stages, "calibrate", calibrate)
    result = edgekit.build(
        Places(), torch.randn(1, 3, 8, 8), targets=["tflite-int8"], calibration=samples(), out=tmp_path
    )
    with pytest.raises(UnsupportedOperatorsError, match="ReduceSum") as caught:
        result.raise_for_failures()
    assert caught.value.exit_code == 4
    assert "ort-fp32" in caught.value.supported_by
