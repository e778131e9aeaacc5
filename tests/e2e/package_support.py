"""Small real artifacts for the package tests: a convolutional classifier of coloured digits.

The features are fixed random convolutions, the classifier is fitted by ridge regression on scikit-learn's
digits, so an artifact is made in a second and without a training framework.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit.artifact import manifest
from edgekit.artifact.manifest import Artifact, GoldenRecord, Manifest
from edgekit.core import targets as catalogue
from edgekit.preprocess.contract import Preprocessing
from edgekit.types import Gate, Parity, SourceRecord, TensorSpec, Verdict, sha256_file

SIZE = 16
LABELS = tuple(f"digit {i}" for i in range(10))
CONTRACT = Preprocessing(
    resize=20,
    crop=(SIZE, SIZE),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


CONTRACTS = (
    Preprocessing(resize=(13, 9), input="image"),
    Preprocessing(
        resize=(13, 9),
        color="bgr",
        filter="bicubic",
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        input="image",
    ),
    Preprocessing(resize=(31, 40), color="gray", layout="NHWC", filter="box", input="image"),
    Preprocessing(resize=16, crop=(11, 12), crop_rounding="half-even", antialias=False, input="image"),
    Preprocessing(resize=16, crop=(11, 12), filter="nearest", scale=1.0, input="image"),
    Preprocessing(resize=(20, 14), fit="pad", pad_value=114, layout="NHWC", input="image"),
    Preprocessing(resize=(14, 20), fit="pad", crop=(12, 12), filter="bicubic", input="image"),
    Preprocessing(crop=(8, 8), scale=1 / 127.5, mean=(1.0,), dtype="int8", input="image"),
    Preprocessing(resize=(9, 9), scale=1.0, dtype="uint8", layout="NHWC", input="image"),
)
"""Every choice of the contract at least once: what the wrappers are compared with Python on."""

IMAGE_SIZES = ((24, 35), (17, 9), (40, 40), (100, 30))


def image_spec(contract: Preprocessing) -> TensorSpec:
    """The model input that a contract of the list above feeds."""
    quantized = {"scale": 1 / 127, "zero_point": -1} if contract.dtype == "int8" else {}
    return TensorSpec(name="image", dtype=contract.dtype, shape=contract.shape, **quantized)


def images(count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """uint8 ``[N, 16, 16, 3]`` images of digits, blue ink on a reddish ground, and their classes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    ink = digits.images[:count, :, :, None] / 16.0
    ink = ink.repeat(2, axis=1).repeat(2, axis=2)
    ground, pen = np.array([200.0, 90.0, 60.0]), np.array([20.0, 60.0, 230.0])
    return np.rint(ground + (pen - ground) * ink).astype(np.uint8), digits.target[:count]


@functools.cache
def weights() -> dict[str, np.ndarray]:
    """Convolution ``[8, 3, 3, 3]`` and the classifier on its pooled features."""
    rng = np.random.default_rng(5)
    kernel = (rng.normal(size=(8, 3, 3, 3)) * 0.3).astype(np.float32)
    pixels, classes = images()
    fed = feed(pixels)
    features = pooled(fed, kernel).reshape(len(fed), -1)
    padded = np.concatenate([features, np.ones((len(fed), 1))], axis=1)
    targets = np.where(np.eye(10)[classes] > 0, 4.0, -4.0)
    solved = np.linalg.solve(padded.T @ padded + 5.0 * np.eye(padded.shape[1]), padded.T @ targets)
    return {
        "kernel": kernel,
        "matrix": solved[:-1].astype(np.float32),
        "bias": solved[-1].astype(np.float32),
    }


def feed(pixels: np.ndarray) -> np.ndarray:
    """The contract's table on images that have the model's size already: float32 ``[N, 3, 16, 16]``."""
    table = CONTRACT.table()
    return np.stack([table[c][pixels[..., c]] for c in range(3)], axis=1)


def pooled(fed: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Convolution with padding 1, ReLU, 4 × 4 average pooling: ``[N, 8, 4, 4]``."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(fed, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3)
    )
    maps = np.maximum(np.einsum("nchwij,ocij->nohw", windows, kernel, optimize=True), 0)
    return maps.reshape(len(fed), 8, 4, 4, 4, 4).mean(axis=(3, 5))


def onnx_model(path: Path) -> None:
    """The network as ONNX, input ``image`` float32 ``[1, 3, 16, 16]``, output ``scores`` ``[1, 10]``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    w = weights()
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["maps"], ["active"]),
        helper.make_node("AveragePool", ["active"], ["pooled"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array, name) for name, array in w.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def reference(fed: np.ndarray) -> np.ndarray:
    """The network in numpy: scores ``[N, 10]`` for ``[N, 3, 16, 16]``."""
    w = weights()
    logits = pooled(fed, w["kernel"]).reshape(len(fed), -1) @ w["matrix"] + w["bias"]
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (grown / grown.sum(axis=1, keepdims=True)).astype(np.float32)


def onnx_artifact(directory: Path) -> Artifact:
    """An artifact of ``ort-fp32`` that passed its gates."""
    directory.mkdir(parents=True)
    onnx_model(directory / "model.onnx")
    return write_artifact(directory, "ort-fp32", "model.onnx")


def tflite_artifact(directory: Path, *, folded: bool = True) -> Artifact:
    """An artifact of ``tflite-fp32``; ``folded`` takes pixels, channels last."""
    from edgekit.backends import tflite
    from edgekit.graph import io
    from edgekit.graph.passes.fold_preprocessing import fold_preprocessing

    directory.mkdir(parents=True)
    onnx_model(directory / "source.onnx")
    model = io.describe(directory / "source.onnx")
    if folded:
        model, _ = fold_preprocessing(model, CONTRACT, directory / "folded.onnx")
    lowered = tflite.lower(model, catalogue.find("tflite-fp32"), {}, directory)
    return write_artifact(directory, "tflite-fp32", lowered.files[0], folded=folded)


def write_artifact(
    directory: Path, target: str, file: str, *, folded: bool = False, snr_db: float = 110.0
) -> Artifact:
    """Golden samples and a manifest beside a model file of the network above."""
    fed = feed(images(6)[0])
    taken = CONTRACT.unapply(fed) if folded else fed
    arrays = {f"input/{i}/image": taken[i : i + 1] for i in range(len(fed))}
    arrays |= {f"output/{i}/scores": reference(fed[i : i + 1]) for i in range(len(fed))}
    np.savez(directory / "golden.npz", **arrays)
    row = catalogue.find(target)
    made = Manifest(
        edgekit="0.1.0",
        status="passed",
        target=row,
        source=SourceRecord(text="digits", kind="onnx", sha256="0" * 64),
        files=manifest.file_records(directory, (file,)),
        inputs=(TensorSpec(name="image", dtype="float32", shape=taken[:1].shape),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(1, 10)),),
        labels=LABELS,
        preprocessing=(CONTRACT.folded("image") if folded else CONTRACT).to_mapping(),
        golden=GoldenRecord(
            file="golden.npz",
            samples=len(fed),
            sha256=sha256_file(directory / "golden.npz"),
            parity=parity(snr_db),
        ),
        gates=(Gate(name="snr_db", verdict=Verdict.PASS, limit=80.0, value=snr_db),),
        runtime=row.runtime,
        minimum_runtime="1.17.0" if row.backend == "onnxruntime" else "LiteRT 2.1 (TensorFlow Lite 2.17)",
    )
    manifest.write(made, directory)
    return manifest.read(directory)


def parity(snr_db: float) -> Parity:
    """A parity record with this SNR."""
    return Parity(samples=6, max_abs=1e-6, relative_error=1e-6, snr_db=snr_db, cosine=1.0)


def changed(artifact: Artifact, **fields: object) -> Artifact:
    """The artifact with other manifest fields, on disk too."""
    made = replace(artifact.manifest, **fields)
    manifest.write(made, artifact.directory)
    return manifest.read(artifact.directory)
