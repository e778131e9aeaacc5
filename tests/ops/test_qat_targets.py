"""Graphs that come with Q/DQ on every target: what was trained is kept, or refused with what to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch")
import onnx_ir as ir  # noqa: E402
from quantize_support import SCHEMES, Items, target  # noqa: E402
from test_qat import EXAMPLE, Net, Stripes  # noqa: E402

from edgekit.compress.step import Context  # noqa: E402
from edgekit.compress.steps.qat import Qat  # noqa: E402
from edgekit.errors import UnsupportedError  # noqa: E402
from edgekit.graph import export, io, passes  # noqa: E402
from edgekit.quantize.calibrate.collect import calibrate  # noqa: E402
from edgekit.quantize.driver import quantize  # noqa: E402
from edgekit.quantize.float_model import FloatModel  # noqa: E402
from edgekit.quantize.options import QuantizeOptions  # noqa: E402
from edgekit.quantize.params import Affine  # noqa: E402
from edgekit.quantize.trained import on_grid, take_apart  # noqa: E402
from edgekit.types import OnnxModel, TorchModel  # noqa: E402

GRIDS = {"uint8": 0, "int8": -128, "int16": 0}


class Job:
    """A trained module, its optimized Q/DQ file and a calibration of it."""

    def __init__(self, step: Qat, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.module = step.apply(Net().eval(), Context(task=Stripes(), example_inputs=EXAMPLE))
        source = TorchModel(module=self.module, example_inputs=EXAMPLE, dynamic_axes={"image": {0: "batch"}})
        exported = export.export(source, folder / "exported.onnx")
        self.model = passes.optimize(exported, folder / "model.onnx")
        self.samples = Items([{"image": x[None].numpy()} for x in Stripes().x[:24]])
        self.calibration = calibrate(self.model, self.samples, out=folder / "calibration")

    def quantized(self, name: str, **options: object) -> tuple[OnnxModel, tuple[str, ...]]:
        wanted = QuantizeOptions(**options)  # type: ignore[arg-type]
        made, report = quantize(
            FloatModel(self.model, self.calibration, self.samples),
            target(name),
            wanted,
            self.folder / f"{name}.onnx",
        )
        return made, report.notes

    def trained(self) -> dict[str, tuple[float, int, str]]:
        """Scale, zero point and type of what each layer reads."""
        found = {}
        for name, module in self.module.named_modules():
            if hasattr(module, "zero_point"):
                dtype = str(module.zero_point.dtype).removeprefix("torch.")
                found[name.rpartition(".")[0]] = (float(module.scale), int(module.zero_point), dtype)
        return found

    def snr(self, model: OnnxModel) -> float:
        x = Stripes().x[:32]
        with torch.no_grad():
            want = self.module(x).numpy()
        got = io.run(io.session(model.path), {"image": x.numpy()})["output"]
        return float(10 * np.log10(np.square(want).sum() / np.square(got - want).sum()))


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(Qat(), tmp_path_factory.mktemp("eight") / "job")


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(Qat(weights=4, symmetric=True, layers="head=8"), tmp_path_factory.mktemp("four") / "job")


def integers(model: OnnxModel) -> dict[str, np.ndarray]:
    """The stored weights by the layer's name."""
    found = io.load(model.path).graph.initializers
    suffix = ".weight_quantized"
    return {n.removesuffix(suffix): v.const_value.numpy() for n, v in found.items() if n.endswith(suffix)}


def affines(model: OnnxModel) -> set[tuple[float, int]]:
    """Scale and zero point (as that of UINT8) of every activation."""
    out = set()
    for node in io.load(model.path).graph:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2].const_value.numpy()
            out.add((float(node.inputs[1].const_value.numpy()), int(zero) - GRIDS[zero.dtype.name]))
    return out


@pytest.mark.parametrize("name", ["ort", "openvino", "tflite"])
def test_ranges_and_integers_are_kept(eight: Job, name: str) -> None:
    made, _ = eight.quantized(name)
    state = eight.module.state_dict()
    kept = integers(made)
    assert {"stem", "depthwise", "left", "right", "head"} <= set(kept)
    for layer, values in kept.items():
        assert np.array_equal(values, state[f"{layer}.parametrizations.weight.original0"].numpy())
    missing = {
        layer
        for layer, (scale, zero, dtype) in eight.trained().items()
        if (scale, zero - GRIDS[dtype]) not in affines(made)
    }
    # ONNX Runtime has no integer kernel for transposed convolutions; LiteRT quantizes rows as they run
    assert missing <= {"ort": {"up"}, "openvino": set(), "tflite": {"rows", "head"}}[name]
    assert eight.snr(made) > 30


@pytest.mark.parametrize("name", ["ort", "openvino", "tflite", "tensorrt"])
def test_four_bits_are_stored_as_the_target_takes_them(four: Job, name: str) -> None:
    made, _ = four.quantized(name)
    for layer, values in integers(made).items():
        assert values.dtype == np.int8
        assert np.abs(values).max() <= (127 if layer == "head" else 7)
    assert four.snr(made) > 30


def test_symmetric_grids_are_the_same_in_both_types(four: Job) -> None:
    ours = {(scale, zero - GRIDS[dtype]) for scale, zero, dtype in four.trained().values()}
    assert len(ours & affines(four.quantized("tensorrt")[0])) >= len(ours) - 1
    assert on_grid(Affine(scale=0.5, zero_point=0, dtype="int8"), "uint8", symmetric=False) == Affine(
        scale=0.5, zero_point=128, dtype="uint8"
    )


def test_weights_alone(four: Job) -> None:
    made, notes = four.quantized("int4-weights")
    before, found = (
        [v.const_value.numpy() for n, v in io.load(p).graph.initializers.items() if n.endswith("quantized")]
        for p in (four.model.path, made.path)
    )
    assert not {n.op_type for n in io.load(made.path).graph} & {"QuantizeLinear"}
    # Every weight has the integers that it was trained to; a linear layer's may have been transposed.
    assert len(found) >= len(before) > 4
    for integers in before:
        assert any(np.array_equal(integers, f) or np.array_equal(integers.T, f) for f in found)
    assert any("computes them in float" in n for n in notes)


def test_sixteen_bits_are_finer_not_wider(eight: Job) -> None:
    made, _ = eight.quantized("tflite-int16")
    scales = {scale for scale, _ in affines(made)}
    stem_scale, zero, _ = eight.trained()["stem"]
    reach = stem_scale * max(zero, 255 - zero)
    assert any(abs(s * 32767 - reach) < 1e-4 * reach for s in scales)


def test_corrections_leave_trained_weights_alone(eight: Job) -> None:
    plain, _ = eight.quantized("tflite")
    told, _ = eight.quantized("tflite", corrections=("equalize", "smooth", "bias", "rounding"))
    assert all(np.array_equal(integers(plain)[n], v) for n, v in integers(told).items())


@pytest.mark.parametrize(
    ("step", "name", "options", "message", "hint"),
    [
        (Qat(), "tensorrt", {}, "zero point", "symmetric=true"),
        (Qat(activations=16), "ort", {}, "INT16", "INT16 activations"),
        (Qat(activations=16), "tflite", {}, "INT16", "INT16 activations"),
        (Qat(), "dynamic", {}, "ranges", "ort-int8"),
        (Qat(), "ort", {"weight_bits": 7}, "8 bits", "weights=7"),
    ],
)
def test_what_a_target_cannot_do_is_refused(
    step: Qat, name: str, options: dict[str, object], message: str, hint: str, tmp_path: Path
) -> None:
    job = Job(step, tmp_path / "job")
    with pytest.raises(UnsupportedError) as caught:
        job.quantized(name, **options)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert not (job.folder / f"{name}.onnx").exists()


def test_seven_bits_are_trained_for_processors_that_need_them(tmp_path: Path) -> None:
    job = Job(Qat(weights=7), tmp_path / "job")
    made, _ = job.quantized("ort", weight_bits=7)
    assert max(np.abs(v).max() for v in integers(made).values()) <= 63


# --- graphs from elsewhere --------------------------------------------------------------------------------------


def written(
    nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], path: Path, opset: int = 21
) -> OnnxModel:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", "columns"])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    proto.ir_version = 10
    return io.save(ir.from_proto(proto), path)


def same(model: OnnxModel, apart: OnnxModel, tolerance: float) -> None:
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    a, b = (io.run(io.session(m.path), {"x": x})["y"] for m in (model, apart))
    assert np.abs(a - b).max() <= tolerance


Q, DQ = "QuantizeLinear", "DequantizeLinear"
PAIR = [
    helper.make_node(Q, ["x", "s", "z"], ["xq"], name="q"),
    helper.make_node(DQ, ["xq", "s", "z"], ["xd"], name="dq"),
]
SCALARS = {"s": np.float32(0.02), "z": np.uint8(120)}


def test_unsigned_weights_and_a_transpose_behind_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        **SCALARS,
        "w": rng.integers(1, 255, (5, 8)).astype(np.uint8),
        "ws": rng.uniform(0.01, 0.02, 5).astype(np.float32),
        "wz": np.full(5, 128, np.uint8),
    }
    nodes = [
        *PAIR,
        helper.make_node(DQ, ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["xd", "wt"], ["y"]),
    ]
    model = written(nodes, arrays, tmp_path / "m.onnx")
    apart, trained = take_apart(model, tmp_path / "apart.onnx")
    same(model, apart, 0.5)
    assert [n.op_type for n in io.load(apart.path).graph] == ["MatMul"]
    (stored,) = trained.weights.values()
    assert stored.axis == 1
    assert np.array_equal(stored.values, (arrays["w"].astype(int) - 128).T)
    assert trained.ranges == {"x": Affine(scale=float(SCALARS["s"]), zero_point=120, dtype="uint8")}


@pytest.mark.parametrize("form", ["blocks", "zero points", "rounded floats", "bias"])
def test_other_forms_keep_their_values(form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {**SCALARS, "w": rng.integers(-7, 8, (8, 5)).astype(np.int8)}
    dq = helper.make_node(DQ, ["w", "ws"], ["wd"], axis=1)
    nodes = [*PAIR, dq, helper.make_node("MatMul", ["xd", "wd"], ["y"])]
    if form == "blocks":
        arrays["ws"] = rng.uniform(0.01, 0.02, (2, 5)).astype(np.float32)
        nodes = [  # beside quantized activations, ONNX Runtime 1.31 fuses blocks into a product that fails
            helper.make_node(DQ, ["w", "ws"], ["wd"], axis=0, block_size=4),
            helper.make_node("MatMul", ["x", "wd"], ["y"]),
        ]
    elif form == "zero points":
        arrays |= {"ws": np.full(5, 0.01, np.float32), "wz": np.array([0, 1, 2, 3, 4], np.int8)}
        nodes[2] = helper.make_node(DQ, ["w", "ws", "wz"], ["wd"], axis=1)
    elif form == "rounded floats":
        arrays["w"] = rng.standard_normal((8, 5)).astype(np.float32)
        arrays |= {"ws": np.full(5, 0.02, np.float32), "wz": np.zeros(5, np.int8)}
        nodes[2:3] = [
            helper.make_node(Q, ["w", "ws", "wz"], ["wq"], axis=1),
            helper.make_node(DQ, ["wq", "ws", "wz"], ["wd"], axis=1),
        ]
    else:
        arrays |= {
            "ws": np.full(5, 0.01, np.float32),
            "b": np.arange(5, dtype=np.int32),
            "bs": np.float32(0.1),
        }
        nodes[3:] = [
            helper.make_node(DQ, ["b", "bs"], ["bd"]),
            helper.make_node("Gemm", ["xd", "wd", "bd"], ["y"]),
        ]
    model = written(nodes, arrays, tmp_path / "m.onnx")
    apart, trained = take_apart(model, tmp_path / "apart.onnx")
    same(model, apart, 0.5)
    known = form in ("rounded floats", "bias")
    assert set(trained.weights) == ({"wd"} if known else set())
    assert bool(trained.notes) != known


@pytest.mark.parametrize("form", ["integer operator", "computed scale", "scales", "output is the input"])
def test_forms_that_cannot_be_taken_apart_are_refused(form: str, tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {k: np.asarray(v) for k, v in SCALARS.items()}
    nodes = [*PAIR, helper.make_node("Relu", ["xd"], ["y"])]
    if form == "integer operator":
        arrays |= {"w": np.ones((8, 5), np.int8)}
        nodes = [PAIR[0], helper.make_node("MatMulInteger", ["xq", "w"], ["i"]),
                 helper.make_node("Cast", ["i"], ["y"], to=TensorProto.FLOAT)]  # fmt: skip
    elif form == "computed scale":
        nodes = [helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0), *nodes]
        del arrays["s"]
    elif form == "scales":
        arrays |= {"s": np.full(8, 0.1, np.float32), "z": np.zeros(8, np.uint8)}
    else:
        nodes = [PAIR[0], helper.make_node(DQ, ["xq", "s", "z"], ["y"])]
    model = written(nodes, arrays, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError):
        take_apart(model, tmp_path / "apart.onnx")


def test_schemes_here_are_those_of_the_catalogue() -> None:
    assert set(SCHEMES) >= {
        "ort",
        "openvino",
        "tflite",
        "tensorrt",
        "tflite-int16",
        "dynamic",
        "int4-weights",
    }
