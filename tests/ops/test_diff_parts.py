"""`edgekit diff` names the layer that was spoiled, and none where nothing was."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import diff_models as models
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgekit.devices.agent.state import isa
from edgekit.diff import Form, Walk, walk
from edgekit.diff.onnx_form import OnnxForm
from edgekit.diff.tflite_form import TfliteForm
from edgekit.diff.torch_form import TorchForm
from edgekit.diff.views import Rescaled, View, views
from edgekit.errors import UsageError
from edgekit.quantize import rescaled

pytest.importorskip("ai_edge_litert")

CASES = 50
EFFECT = 2.0
"""A case is fair when spoiling changes the outputs by more energy than quantization already does, this many
times over: a layer that no output depends on cannot be found, nor need be. It is measured without diff."""
FLOAT_NOISE = 1e-6
"""What counts as the noise of float32 graphs, relative to the outputs' energy (-60 dB)."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way of storing a model: the forms before it, the file, and how it is spoiled and read."""

    before: Callable[[models.Built], list[Form]]
    file: Callable[[models.Built], Path]
    spoil: Callable[[Path, Path, np.random.Generator, torch.nn.Module], models.Fault]
    read: Callable[[Path], Form]


def _from_torch(built: models.Built) -> list[Form]:
    outputs = tuple(o.name for o in built.exported.outputs)
    return [TorchForm(built.torch, outputs), OnnxForm("exported", built.exported.path)]


def _optimized(built: models.Built) -> list[Form]:
    return [OnnxForm("optimized", built.optimized.path)]


def _quantized_for_tflite(built: models.Built) -> list[Form]:
    return [*_optimized(built), OnnxForm("quantized", built.tflite_quantized.path)]


KINDS = {
    "float ONNX": Kind(
        before=_from_torch,
        file=lambda b: b.exported.path,
        spoil=models.spoil_onnx,
        read=lambda p: OnnxForm("given", p),
    ),
    "Q/DQ ONNX": Kind(
        before=_optimized,
        file=lambda b: b.quantized.path,
        spoil=models.spoil_quantized,
        read=lambda p: OnnxForm("quantized", p),
    ),
    "kernels": Kind(
        before=_optimized,
        file=lambda b: b.quantized.path,
        spoil=models.spoil_quantized,
        read=lambda p: OnnxForm("ONNX Runtime", p, kernels=True),
    ),
    "LiteRT": Kind(
        before=_quantized_for_tflite,
        file=lambda b: b.tflite,
        spoil=models.spoil_tflite,
        read=lambda p: TfliteForm("LiteRT", p),
    ),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], models.Built]:
    @cache
    def made(name: str) -> models.Built:
        return models.built(name, tmp_path_factory.mktemp(name))

    return made


def outputs(form: Form, built: models.Built) -> np.ndarray:
    rows = [form.free(inputs) for inputs in built.inputs]
    return np.concatenate([row[name].ravel() for row in rows for name in form.outputs]).astype(np.float64)


def spoiled(built: models.Built, kind: Kind, seed: int, folder: Path) -> tuple[models.Fault, Form] | None:
    """One layer spoiled, or ``None`` when the outputs hardly notice (see EFFECT)."""
    clean = outputs(kind.read(kind.file(built)), built)
    true = outputs(kind.before(built)[-1], built)
    noise = max(float(((clean - true) ** 2).sum()), FLOAT_NOISE * float((true**2).sum()))
    file = folder / f"{seed}{kind.file(built).suffix}"
    fault = kind.spoil(kind.file(built), file, np.random.default_rng(seed), built.torch.module)
    form = kind.read(file)
    change = float(((outputs(form, built) - clean) ** 2).sum())
    return (fault, form) if change > EFFECT * noise else None


def named(found: Walk) -> str:
    return found.starts_at.module if found.starts_at else "nothing"


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_names_the_spoiled_layer(name: str, zoo: Callable[[str], models.Built], tmp_path: Path) -> None:
    kind, wrong, done, seed = KINDS[name], [], 0, 0
    while done < CASES:
        built = zoo(list(models.MODELS)[seed % len(models.MODELS)])
        case = spoiled(built, kind, seed, tmp_path)
        seed += 1
        if case is None:
            continue
        fault, form = case
        found = walk([*kind.before(built), form], built.inputs)
        done += 1
        if named(found) != fault.module:
            wrong.append(f"seed {seed - 1}, {built.name}: {fault} was taken for {named(found)}")
    assert not wrong, f"{len(wrong)} of {CASES}: {wrong}"
    assert done / seed > 0.5, "the faults are too weak to tell anything"


@pytest.mark.parametrize("name", KINDS)
def test_one_spoiled_layer_of_a_small_network(
    name: str, zoo: Callable[[str], models.Built], tmp_path: Path
) -> None:
    built, kind = zoo("mlp"), KINDS[name]
    cases = [case for seed in range(8) if (case := spoiled(built, kind, seed, tmp_path)) is not None]
    assert len(cases) >= 3
    for fault, form in cases:
        assert named(walk([*kind.before(built)[-1:], form], built.inputs)) == fault.module


@pytest.mark.parametrize("name", KINDS)
def test_an_unspoiled_network_has_no_wrong_layer(name: str, zoo: Callable[[str], models.Built]) -> None:
    if name == "kernels" and platform.machine() == "x86_64" and "vnni" not in isa():
        pytest.skip("UINT8 x INT8 products saturate in 16 bits on this processor: a layer really is off")
    built, kind = zoo("mlp"), KINDS[name]
    found = walk([*kind.before(built), kind.read(kind.file(built))], built.inputs)
    assert found.starts_at is None
    assert all(stage.layers for stage in found.stages)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("model", models.MODELS)
def test_no_false_alarm(name: str, model: str, zoo: Callable[[str], models.Built]) -> None:
    built, kind = zoo(model), KINDS[name]
    assert walk([*kind.before(built), kind.read(kind.file(built))], built.inputs).starts_at is None


# --- what must not mislead -------------------------------------------------------------------------------


def edited(source: Path, out: Path, weights: dict[str, Callable[[np.ndarray], np.ndarray]]) -> Path:
    proto = onnx.load(str(source))
    for item in proto.graph.initializer:
        if item.name in weights:
            array = numpy_helper.to_array(item)
            item.CopyFrom(numpy_helper.from_array(weights[item.name](array).astype(array.dtype), item.name))
    onnx.save(proto, str(out))
    return out


def test_a_dead_layer_is_not_blamed(zoo: Callable[[str], models.Built], tmp_path: Path) -> None:
    """Layer 2 gives zeros on both sides; layer 6 is the one that was spoiled."""
    source = zoo("mlp").exported.path
    dead = {"2.weight": np.zeros_like, "2.bias": np.zeros_like}
    one = edited(source, tmp_path / "one.onnx", dead)
    two = edited(source, tmp_path / "two.onnx", {**dead, "6.weight": lambda w: -w})
    found = walk([OnnxForm("one", one), OnnxForm("two", two)], zoo("mlp").inputs)
    assert named(found) == "6"


def test_a_spoiled_layer_without_effect_is_no_difference(
    zoo: Callable[[str], models.Built], tmp_path: Path
) -> None:
    source = zoo("mlp").exported.path
    one = edited(source, tmp_path / "one.onnx", {"4.weight": np.zeros_like})
    two = edited(source, tmp_path / "two.onnx", {"4.weight": np.zeros_like, "2.weight": lambda w: 1.01 * w})
    found = walk([OnnxForm("one", one), OnnxForm("two", two)], zoo("mlp").inputs)
    assert found.output_db == 200.0
    assert found.starts_at is None


def test_nan_in_the_first_is_no_error_of_the_second(
    zoo: Callable[[str], models.Built], tmp_path: Path
) -> None:
    """Both have a NaN channel from layer 0 on; only layer 0's own NaN may not hide or accuse others."""
    source = zoo("mlp").exported.path

    def broken(weights: np.ndarray) -> np.ndarray:
        changed = weights.copy()
        changed[0] = np.nan
        return changed

    one = edited(source, tmp_path / "one.onnx", {"0.bias": broken})
    same = walk([OnnxForm("one", one), OnnxForm("again", one)], zoo("mlp").inputs)
    assert same.starts_at is None


def test_nan_in_the_second_is_named(zoo: Callable[[str], models.Built], tmp_path: Path) -> None:
    def broken(bias: np.ndarray) -> np.ndarray:
        changed = bias.copy()
        changed[1] = np.nan
        return changed

    source = zoo("mlp").exported.path
    two = edited(source, tmp_path / "two.onnx", {"4.bias": broken})
    found = walk([OnnxForm("one", source), OnnxForm("two", two)], zoo("mlp").inputs)
    assert named(found) == "4"
    assert found.starts_at is not None
    assert found.starts_at.excess_db == 200.0


def test_two_wrong_layers_are_both_named(zoo: Callable[[str], models.Built], tmp_path: Path) -> None:
    source = zoo("mlp").exported.path
    two = edited(source, tmp_path / "two.onnx", {"2.weight": lambda w: -w, "8.weight": lambda w: 1.3 * w})
    found = walk([OnnxForm("one", source), OnnxForm("two", two)], zoo("mlp").inputs)
    assert found.broken is not None
    assert {layer.module for layer in found.broken.wrong} == {"2", "8"}


def test_renamed_tensors_are_found_by_value(zoo: Callable[[str], models.Built], tmp_path: Path) -> None:
    """No tensor keeps its name; upstream of the fault the values lead back."""
    proto = onnx.load(str(zoo("mlp").exported.path))
    kept = {i.name for i in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer)}
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = name if name in kept else f"other_{name}"
    del proto.graph.value_info[:]
    onnx.save(proto, str(tmp_path / "renamed.onnx"))
    spoiled = edited(tmp_path / "renamed.onnx", tmp_path / "two.onnx", {"8.weight": lambda w: -w})
    found = walk([OnnxForm("one", zoo("mlp").exported.path), OnnxForm("two", spoiled)], zoo("mlp").inputs)
    assert len(found.stages[0].layers) >= 5
    assert named(found) == "8"


def test_one_form_cannot_be_walked(zoo: Callable[[str], models.Built]) -> None:
    with pytest.raises(UsageError):
        walk([OnnxForm("one", zoo("mlp").exported.path)], zoo("mlp").inputs)


def test_views_lead_there_and_back() -> None:
    value = np.random.default_rng(0).standard_normal((1, 3, 4, 5))
    assert views((1, 3, 4, 5), (1, 4, 5, 3)) == [View((1, 2, 0))]
    for shape in ((1, 4, 5, 3), (5, 4, 3), (1, 3, 4, 5)):
        for view in views(value.shape, shape):
            assert np.array_equal(view.back(view.forward(value, shape), value.shape), value)
    assert views((2, 3), (4, 2)) == []


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (3, 6), (2, 4, 6)])
def test_rescaled_channels_lead_there_and_back(shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(0).standard_normal(shape)
    factors = tuple(2.0 ** np.arange(6))
    view = Rescaled(axis=1 if len(shape) == 4 else -1, factors=factors)
    moved = view.forward(value, shape)
    axis = 1 if len(shape) == 4 else len(shape) - 1
    assert np.array_equal(np.take(moved, 3, axis), 8 * np.take(value, 3, axis))
    assert np.allclose(view.back(moved, shape), value)
    assert view.spread(shape).ravel()[3] == 1 / 8


def test_what_corrections_moved_is_written_down(zoo: Callable[[str], models.Built]) -> None:
    """Layer 6 of the small network is smoothed; its tensor is so many times the float model's."""
    built = zoo("mlp")
    form, before = OnnxForm("quantized", built.quantized.path), OnnxForm("optimized", built.optimized.path)
    noted = {layer.module: layer for layer in form.layers if layer.factors is not None}
    assert set(noted) == {"6"}
    factors = np.asarray(noted["6"].factors.values)
    ours, theirs = before.free(built.inputs[0])["relu_2"], form.free(built.inputs[0])[noted["6"].tensor]
    assert np.abs(theirs - ours * factors).max() < 0.03 * np.abs(theirs).max()


def test_a_note_that_edgekit_never_wrote_is_not_read() -> None:
    for text in ("", "1", "1:", "2:AACAPw==", "1:not base64", "1:AADAfw==", "-1:AACAvw==", "1:AACA"):
        node = onnx.NodeProto()
        node.metadata_props.add(key="edgekit.rescaled", value=text)
        assert rescaled.read(node) is None
    node = onnx.NodeProto()
    node.metadata_props.add(key="edgekit.rescaled", value="-1:AACAPw==")
    assert rescaled.read(node) == rescaled.Factors(axis=-1, values=(1.0,))


def _divides(path: Path) -> Path:
    helper, tensor = onnx.helper, onnx.TensorProto
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Div", ["r", "r"], ["y"])]
    ports = [helper.make_tensor_value_info(n, tensor.FLOAT, [1, 4]) for n in ("x", "y")]
    opset = [helper.make_opsetid("", 20)]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_what_is_not_finite_is_said_and_alone_is_no_agreement(tmp_path: Path) -> None:
    forms = [OnnxForm(name, _divides(tmp_path / f"{name}.onnx")) for name in ("one", "two")]
    some, none = np.array([[1, -1, 2, 3]], np.float32), np.full((1, 4), -1, np.float32)
    assert "1 of 4 outputs of one are not finite" in walk(forms, [{"x": some}]).notes[-1]
    nothing = walk(forms, [{"x": none}])
    assert "4 of 4" in nothing.notes[-1]
    assert not nothing.compared
