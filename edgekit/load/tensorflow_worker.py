"""Runs in a process of its own: TensorFlow or Keras model → ONNX file, and a report in a file of the same name.

``python -m edgekit.load.tensorflow_worker SOURCE OUT OPSET TRUST``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from edgekit.errors import first_line

# Every SavedModel has the checkpoint operators (SaveV2, RestoreV2, MergeV2Checkpoints); these it has not.
_FILE_OPERATORS = {
    "EagerPyFunc", "FixedLengthRecordReaderV2", "LoadLibrary", "MatchingFiles", "PyFunc", "PyFuncStateless",
    "ReadFile", "TextLineReaderV2", "TFRecordReaderV2", "WholeFileReaderV2", "WriteFile",
}  # fmt: skip


class _Tensor(Protocol):
    """One of TensorFlow's tensors, as far as it is used here."""

    def numpy(self) -> np.generic | np.ndarray[tuple[int, ...], np.dtype[np.generic]]: ...


@dataclass(frozen=True, kw_only=True)
class _Function:
    """A ``tf.function`` of tensors by position. ``owner`` is what has to live as long: it holds the variables."""

    call: Callable[..., list[_Tensor]]
    signature: list[tf.TensorSpec]
    outputs: list[str]
    owner: object = None


def main(argv: list[str]) -> None:
    """Convert, and write the outcome as JSON to ``OUT`` with the suffix ``.json``."""
    source, out, opset, trust = Path(argv[0]), Path(argv[1]), int(argv[2]), argv[3] == "1"
    tf.get_logger().setLevel("ERROR")
    try:
        report = _convert(source, out, opset, trust)
    # TensorFlow, Keras and tf2onnx raise anything; the parent makes a typed error of it.
    except Exception as error:  # noqa: BLE001
        report = {
            "error": f"{type(error).__name__}: {first_line(error)}"[:500],
            "hint": "load it in TensorFlow to see whether it is sound; or export it to ONNX yourself",
        }
    out.with_suffix(".json").write_text(json.dumps(report))


def _convert(source: Path, out: Path, opset: int, trust: bool) -> dict[str, str]:
    hazard = "" if trust else _hazard(source)
    if hazard:
        return {"untrusted": hazard}
    function = _saved_model(source) if source.is_dir() else _keras(source, trust)
    proto, _ = tf2onnx.convert.from_function(function.call, input_signature=function.signature, opset=opset)
    _rename(proto, [s.name for s in function.signature], function.outputs)
    onnx.save(proto, str(out))
    _save_reference(function, [v.name for v in proto.graph.output], out.with_suffix(".npz"))
    return {}


def _save_reference(function: _Function, outputs: list[str], path: Path) -> None:
    """Random inputs and TensorFlow's outputs on them, for the parent to compare the ONNX with."""
    generator = np.random.default_rng(0)
    for size in (2, 1):  # of dynamic dimensions: some models take one sample at a time only
        inputs = {}
        for spec in function.signature:
            shape = [d if d is not None else size for d in spec.shape]
            floating = spec.dtype.is_floating
            drawn = generator.normal(size=shape) if floating else generator.integers(0, 2, shape)
            inputs[spec.name] = drawn.astype(spec.dtype.as_numpy_dtype)
        try:
            results = function.call(*(tf.constant(v) for v in inputs.values()))
        except (tf.errors.OpError, ValueError):  # random inputs need not be valid ones
            continue
        arrays = {f"in:{k}": v for k, v in inputs.items()}
        arrays |= {f"out:{n}": np.asarray(r.numpy()) for n, r in zip(outputs, results, strict=True)}
        np.savez(path, **arrays)  # type: ignore[arg-type]  # names are data, not keywords
        return


def _hazard(source: Path) -> str:
    """What in the file would execute code or touch files; empty when nothing is known to."""
    if source.is_dir():
        saved = SavedModel()
        saved.ParseFromString((source / "saved_model.pb").read_bytes())
        for meta in saved.meta_graphs:
            functions = [n for f in meta.graph_def.library.function for n in f.node_def]
            operators = {n.op for n in functions} | {n.op for n in meta.graph_def.node}
            if own := operators & _FILE_OPERATORS:
                return f"uses operators that read or write files or call Python: {', '.join(sorted(own))}"
        return ""
    if source.suffix.lower() == ".keras":
        return ""  # Keras' safe mode refuses code in this format by itself
    import h5py  # type: ignore[import-untyped]

    with h5py.File(source, "r") as file:
        config = file.attrs.get("model_config", "")
    text = config.decode() if isinstance(config, bytes) else str(config)
    if not text:
        raise ValueError("the file holds weights without a model")
    return "has a Lambda layer, which is stored Python code" if '"Lambda"' in text else ""


def _keras(source: Path, trust: bool) -> _Function:
    import keras

    model = keras.saving.load_model(source, compile=False, safe_mode=not trust)
    inputs = list(getattr(model, "inputs", None) or [])
    if not inputs:
        raise ValueError(
            "the Keras model does not know its inputs; build it with keras.Input, or export a SavedModel"
        )
    names = [_clean(getattr(t, "name", "") or f"input_{i}") for i, t in enumerate(inputs)]
    signature = [tf.TensorSpec(t.shape, t.dtype, name=n) for t, n in zip(inputs, names, strict=True)]
    several = len(inputs) > 1

    def call(*tensors: _Tensor) -> list[object]:
        return _leaves(model(list(tensors) if several else tensors[0], training=False))

    flat = list(getattr(model, "outputs", None) or [])
    outputs = [_clean(n) for n in getattr(model, "output_names", None) or []]
    if len(outputs) != len(flat) or len(set(outputs)) != len(outputs):
        outputs = [f"output_{i}" for i in range(len(flat))] if len(flat) > 1 else ["output"]
    return _Function(call=tf.function(call, input_signature=signature), signature=signature, outputs=outputs)


def _saved_model(source: Path) -> _Function:
    loaded = tf.saved_model.load(str(source))
    signatures = dict(loaded.signatures)
    if not signatures:
        raise ValueError("the SavedModel has no signature; save it with signatures={'serving_default': …}")
    serving = signatures.get("serving_default") or signatures[min(signatures)]
    _, keywords = serving.structured_input_signature
    names = sorted(keywords)
    signature = [tf.TensorSpec(keywords[n].shape, keywords[n].dtype, name=_clean(n)) for n in names]

    def call(*tensors: _Tensor) -> list[_Tensor]:
        result = serving(**dict(zip(names, tensors, strict=True)))
        return [result[k] for k in sorted(result)]

    return _Function(
        call=tf.function(call, input_signature=signature),
        signature=signature,
        outputs=[_clean(k) for k in sorted(serving.structured_outputs)],
        owner=loaded,
    )


def _leaves(result: object) -> list[object]:
    """The tensors of a nested result, in order; mappings in the order of their keys."""
    if isinstance(result, Mapping):
        return [leaf for value in result.values() for leaf in _leaves(value)]
    if isinstance(result, list | tuple):
        return [leaf for value in result for leaf in _leaves(value)]
    return [result]


def _clean(name: str) -> str:
    return name.split(":")[0].replace("/", "_")


def _rename(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Give graph inputs and outputs the model's own names, without TensorFlow's ``:0``."""
    new: dict[str, str] = {}
    for values, names in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        for value, name in zip(values, names, strict=True):
            new[value.name] = name if name not in new.values() else f"{name}_out"
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = new[value.name]
    for node in proto.graph.node:
        node.input[:] = [new.get(n, n) for n in node.input]
        node.output[:] = [new.get(n, n) for n in node.output]


if __name__ == "__main__":
    main(sys.argv[1:])
