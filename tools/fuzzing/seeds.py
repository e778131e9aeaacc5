"""Small valid models, artifacts and bundles to begin with."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.artifact import golden, manifest
from edgekit.artifact.manifest import FileRecord, GoldenRecord, Manifest, StepRecord
from edgekit.core import targets
from edgekit.package import descriptor, writing
from edgekit.package.descriptor import Descriptor, Golden, GoldenCase, LabelsRecord, RuntimeNeed, TensorFile
from edgekit.types import (
    Gate,
    Parity,
    Placement,
    Precision,
    Sample,
    SourceRecord,
    TensorSpec,
    Verdict,
    sha256_bytes,
    sha256_file,
)

_GENERATOR = np.random.default_rng(0)


def _weights(*shape: int) -> np.ndarray:
    return _GENERATOR.normal(size=shape).astype(np.float32)


def _model(nodes: list, inputs: dict, outputs: dict, weights: dict) -> onnx.ModelProto:
    infos = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()]
        for side in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "g", *infos, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.producer_name = "seed"
    return model


def dense() -> bytes:
    """Two products with a dynamic batch: ``x [batch, 8]`` to ``y [batch, 4]``."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "act"),
        helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
    ]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'layer1', 'first']")
    weights = {"w": _weights(6, 8), "b": _weights(6), "v": _weights(6, 4)}
    return _model(nodes, {"x": ["batch", 8]}, {"y": ["batch", 4]}, weights).SerializeToString()


def image() -> bytes:
    """A small quantized network on pictures: ``x [1, 3, 8, 8]`` to ``y [1, 5]``."""
    make = helper.make_node
    nodes = [
        make("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        make("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
        make("Conv", ["d", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1], strides=[2, 2], kernel_shape=[3, 3]),
        make("Clip", ["c", "lo", "hi"], ["a"], "clip"),
        make("MaxPool", ["a"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        make("Reshape", ["m", "shape"], ["f"], "flatten"),
        make("Gemm", ["f", "v"], ["g"], "head"),
        make("Softmax", ["g"], ["y"], "softmax", axis=-1),
    ]
    weights = {
        "s": np.array(0.05, np.float32), "z": np.array(3, np.int8), "w": _weights(4, 3, 3, 3), "b": _weights(4),
        "lo": np.array(0, np.float32), "hi": np.array(6, np.float32), "shape": np.array([1, -1]), "v": _weights(16, 5),
    }  # fmt: skip
    return _model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, weights).SerializeToString()


def branches() -> bytes:
    """``If`` and ``Loop`` with graphs inside, slices, a shape that is computed."""
    make, info = helper.make_node, helper.make_tensor_value_info
    arms = [
        helper.make_graph(
            [make(op, ["x"], [f"{op}_out"], op)], op, [], [info(f"{op}_out", TensorProto.FLOAT, ["n", 4])]
        )
        for op in ("Relu", "Tanh")
    ]
    body = helper.make_graph(
        [make("Identity", ["go"], ["more"]), make("Add", ["state", "x"], ["next"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, ["n", 4]),
        ],
        [info("more", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, ["n", 4])],
    )
    nodes = [
        make("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        make("Greater", ["top", "zero"], ["cond"], "greater"),
        make("If", ["cond"], ["branch"], "if", then_branch=arms[0], else_branch=arms[1]),
        make("Loop", ["times", "true", "branch"], ["looped"], "loop", body=body),
        make("Shape", ["looped"], ["size"], "shape"),
        make("Expand", ["one", "size"], ["ones"], "expand"),
        make("Concat", ["looped", "ones"], ["y"], "concat", axis=1),
    ]
    weights = {
        "zero": np.array(0, np.float32),
        "times": np.array(3),
        "true": np.array(True),
        "one": np.ones((1, 1), np.float32),
    }
    return _model(nodes, {"x": ["n", 4]}, {"y": ["n", 8]}, weights).SerializeToString()


def tflite(data: bytes) -> bytes:
    """A model as edgekit's compiler writes it."""
    import onnx_ir as ir

    from edgekit.backends.tflite.compiler import compile_onnx

    model = onnx.ModelProto.FromString(data)
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_value = dim.dim_value or 1
    return compile_onnx(ir.from_proto(model)).data


# --- artifacts and bundles -------------------------------------------------------------------------------

_X, _Y = (
    TensorSpec(name="x", dtype="float32", shape=("batch", 8)),
    TensorSpec(name="y", dtype="float32", shape=("batch", 4)),
)
_PARITY = Parity(samples=2, max_abs=1e-6, relative_error=1e-7, snr_db=130.0, cosine=1.0)


def artifact(folder: Path) -> Path:
    """An artifact as ``edgekit build --target ort-fp32`` leaves it."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(dense())
    samples = [Sample(inputs={"x": _weights(1, 8)}) for _ in range(2)]
    golden.write(samples, [{"y": _dense(s.inputs["x"])} for s in samples], folder / golden.FILE)
    names = ("model.onnx", golden.FILE)
    records = {
        n: FileRecord(name=n, size=(folder / n).stat().st_size, sha256=sha256_file(folder / n)) for n in names
    }
    made = Manifest(
        edgekit="0.1.0",
        status="passed",
        target=targets.known()["ort-fp32"],
        source=SourceRecord(text="evil.py:model", kind="factory", sha256="0" * 64),
        settings={"ort_format": False},
        steps=(StepRecord(name="export", output_sha256="0" * 64, versions={"torch": "2.13.0"}, seconds=1.5),),
        files=(records["model.onnx"],),
        inputs=(_X,),
        outputs=(_Y,),
        labels=("a", "b", "c", "d"),
        golden=GoldenRecord(file=golden.FILE, samples=2, sha256=records[golden.FILE].sha256, parity=_PARITY),
        parity=_PARITY,
        placement=Placement(precision="fp32", share=1.0, operators=3, kernels={"Gemm": 2}),
        gates=(Gate(name="snr", verdict=Verdict.PASS, limit=80.0, value=130.0),),
        runtime={"threads": 1},
        runtime_versions={"onnxruntime": "1.31.1"},
        minimum_runtime="1.14",
        machine={"cpus": 2},
    )
    manifest.write(made, folder)
    return folder


def _dense(x: np.ndarray) -> np.ndarray:
    weights = {
        t.name: numpy_helper.to_array(t) for t in onnx.ModelProto.FromString(dense()).graph.initializer
    }
    hidden: np.ndarray = np.maximum(x @ weights["w"].T + weights["b"], 0)
    return hidden @ weights["v"]


def bundle(folder: Path) -> dict[str, bytes]:
    """The files of a bundle: a model, its descriptor, labels and test vectors, and their checksums."""
    del folder
    model, labels = dense(), b"a\nb\nc\nd\n"
    x, files = _weights(1, 8), {"README.md": b"# a model\n"}
    arrays = {"golden/one/input-0.bin": x, "golden/one/output-0.bin": _dense(x).astype(np.float32)}
    files |= {name: array.tobytes() for name, array in arrays.items()}
    tensors = {
        n: TensorFile(
            name=n.split("/")[2][0].replace("i", "x").replace("o", "y"),
            file=n,
            dtype="float32",
            shape=a.shape,
        )
        for n, a in arrays.items()
    }
    case = GoldenCase(
        name="one", inputs=(tensors["golden/one/input-0.bin"],), outputs=(tensors["golden/one/output-0.bin"],)
    )
    described = Descriptor(
        name="com.example.dense",
        version="1.0.0",
        target="ort-fp32",
        backend="onnxruntime",
        precision=Precision.FP32,
        status="passed",
        runtime=RuntimeNeed(name="ONNX Runtime", minimum="1.14", options={"threads": 1}),
        files=("model/model.onnx",),
        model_sha256=sha256_bytes(model),
        inputs=(_X,),
        outputs=(_Y,),
        labels=LabelsRecord(file="labels.txt", count=4, sha256=sha256_bytes(labels), output="y"),
        golden=Golden(cases=(replace(case, label=""),), tolerance=descriptor.TOLERANCES["float32"]),
        gates=(Gate(name="snr", verdict=Verdict.PASS, limit=80.0, value=130.0),),
        edgekit="0.1.0",
    )
    files |= {"model/model.onnx": model, "labels.txt": labels, "edgekit.json": descriptor.encode(described)}
    return {**files, writing.SUMS: writing.sums(files)}


def saved(**arrays: np.ndarray) -> bytes:
    """An ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()
