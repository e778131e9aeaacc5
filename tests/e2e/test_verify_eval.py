"""``edgekit verify --eval``: metric and placement again, and with the source all of parity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_process import edgekit

import edgekit as api

pytestmark = [pytest.mark.e2e]


def module() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def rows(count: int, seed: int) -> list[tuple[np.ndarray, int]]:
    """Inputs with what the module itself says, without doubt, of nine in ten of them."""
    network, generator = module(), np.random.default_rng(seed)
    found: list[tuple[np.ndarray, int]] = []
    while len(found) < count:
        row = generator.normal(size=(1, 6)).astype(np.float32)
        (first, second), (right, _) = network(torch.from_numpy(row))[0].topk(2)
        if first - second > 0.2:
            found.append((row, int(right) if len(found) % 10 else (int(right) + 1) % 3))
    return found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("verify-eval")
    result = api.build(
        module(),
        targets=["tflite-int8", "ort-fp32", "ort-int8"],
        calibration=[r for r, _ in rows(64, 2)],
        evaluation=rows(300, 3),
        out=out,
        options=api.Options(speed_gate=False),
    )
    # Without VNNI the INT8 of ONNX Runtime may lose too much; its folder is there all the same.
    assert {f.target for f in result.failures} <= {"ort-int8"}
    return out


def by_name(result: api.Replay) -> dict[str, api.Gate]:
    return {g.name: g for g in result.gates}


def test_beside_its_source_every_gate_of_parity_is_repeated(artifacts):
    artifact = api.open(artifacts / "tflite-int8")
    result = artifact.verify(evaluation=rows(300, 3), source=module())
    gates, built = by_name(result), {g.name: g for g in artifact.manifest.gates}
    assert {"snr", "slices", "top1-agreement", "metric-drop"} <= set(gates)
    assert {n: g.value for n, g in gates.items()} == {n: g.value for n, g in built.items() if n in gates}
    assert set(result.not_repeated) == set(built) - set(gates)
    assert result.evaluation is not None
    assert result.evaluation.samples == 300
    assert not any("is not the source" in note for note in result.notes)


def test_a_source_that_changed_a_little_is_said_to_be_another(tmp_path):
    """Its gates may hold all the same."""
    code = "import torch\n\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Linear(6, 3)), torch.ones(1, 6)\n"
    file = tmp_path / "net.py"
    file.write_text(code)
    samples = [row for row, _ in rows(20, 3)]
    api.build(f"{file}:net", targets=["ort-fp32"], evaluation=samples, out=tmp_path / "out")

    def said() -> bool:
        result = api.open(tmp_path / "out" / "ort-fp32").verify(evaluation=samples, source=f"{file}:net")
        return any("is not the source that the artifact was built from" in note for note in result.notes)

    assert not said()
    file.write_text(f"# A comment.\n{code}")
    assert not said()
    file.write_text(code.replace("Linear(6, 3)", "Linear(6, 3), torch.nn.Hardtanh(-50.0, 50.0)"))
    assert said()


def test_without_it_the_metric_is_held_against_what_the_manifest_says_and_is_no_proof(artifacts):
    result = api.open(artifacts / "tflite-int8").verify(evaluation=rows(300, 3))
    gates = by_name(result)
    assert gates["metric-drop"].verdict == "unproven"
    assert "placement" in result.not_repeated
    assert result.evaluation is None


def test_other_data_are_shown_and_not_judged(artifacts):
    gate = by_name(api.open(artifacts / "tflite-int8").verify(evaluation=rows(100, 4)))["metric"]
    assert gate.verdict == "shown"
    assert gate.value == pytest.approx(0.9, abs=0.03)


def test_another_source_is_seen(artifacts):
    torch.manual_seed(7)
    other = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    result = api.open(artifacts / "tflite-int8").verify(evaluation=rows(300, 3), source=other)
    assert result.status == "failed"
    assert by_name(result)["slices"].verdict == "fail"


def test_a_source_that_takes_other_inputs_is_not_blamed_on_the_data(artifacts):
    other = api.TorchModel(module=torch.nn.Linear(4, 3), example_inputs={"input": torch.randn(1, 4)})
    with pytest.raises(api.EdgekitError, match="was not built from that") as caught:
        api.open(artifacts / "tflite-int8").verify(evaluation=rows(20, 3), source=other)
    assert caught.value.exit_code == 2


def test_placement_is_counted_again_where_the_files_tell_it(artifacts):
    artifact = api.open(artifacts / "ort-fp32")
    assert by_name(artifact.verify(evaluation=rows(60, 3), source=module()))["placement"].value == 1.0


def test_a_float_file_under_an_integer_manifest_is_seen(artifacts, tmp_path):
    built = next(artifacts.glob("ort-int8*"))
    copy = Path(shutil.copytree(built, tmp_path / "copy"))
    shutil.copy(artifacts / "ort-fp32" / "model.onnx", copy / "model.onnx")
    document = json.loads((copy / "manifest.json").read_text())
    document["files"] = json.loads((artifacts / "ort-fp32" / "manifest.json").read_text())["files"]
    (copy / "manifest.json").write_text(json.dumps(document))
    gate = by_name(api.open(copy).verify(evaluation=rows(60, 3), source=module()))["placement"]
    assert (gate.verdict, gate.value) == ("fail", 0.0)


def test_a_limit_that_nothing_can_be_held_to_is_refused(artifacts):
    options = api.Options(limit={"placement": 0.9})
    with pytest.raises(api.EdgekitError, match="placement"):
        api.open(artifacts / "tflite-int8").verify(evaluation=rows(60, 3), options=options)
    options = api.Options(limit={"metric-drop": 0.01})
    with pytest.raises(api.EdgekitError, match="metric-drop"):
        api.open(artifacts / "tflite-int8").verify(evaluation=[r for r, _ in rows(60, 3)], options=options)


def test_a_loss_that_the_manifest_denies_is_refused(artifacts, tmp_path):
    copy = Path(shutil.copytree(artifacts / "tflite-int8", tmp_path / "copy"))
    path = copy / "manifest.json"
    document = json.loads(path.read_text())
    document["parity"]["reference_metric"] = 1.0
    path.write_text(json.dumps(document))
    assert by_name(api.open(copy).verify(evaluation=rows(300, 3)))["metric-drop"].verdict == "fail"


@pytest.mark.parametrize("flag", ["--source", "--metric"])
def test_a_source_or_metric_without_data_is_a_usage_error(artifacts, flag):
    result = edgekit("verify", artifacts / "tflite-int8", flag, "x.py:f")
    assert result.code == 2
    assert "--eval" in result.err
