"""Runs in a process of its own: TensorFlow or Keras model → ONNX file, and a report beside it.

``python -m edgekit.load.tensorflow_worker SOURCE OUT OPSET TRUST``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Every SavedModel has the checkpoint operators (SaveV2, RestoreV2, MergeV2Checkpoints); these it has not.
_FILE_OPERATORS = {
    "EagerPyFunc", "FixedLengthRecordReaderV2", "LoadLibrary", "MatchingFiles", "PyFunc", "PyFuncStateless",
    "ReadFile", "TextLineReaderV2", "TFRecordReaderV2", "WholeFileReaderV2", "WriteFile",
}  # fmt: skip


def main(argv: list[str]) -> None:
    """Convert, and write the outcome as JSON to ``OUT`` with the suffix ``.json``."""
    source, out, opset, trust = Path(argv[0]), Path(argv[1]), int(argv[2]), argv[3] == "1"
    try:
        told = _convert(source, out, opset, trust)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent turns it into a typed error
        lines = str(error).strip().splitlines()
        told = {
            "error": f"{type(error).__name__}: {lines[0] if lines else ''}"[:500],
            "hint": "load it in TensorFlow to see whether it is sound; or export it to ONNX yourself",
        }
    out.with_suffix(".json").write_text(json.dumps(told))


def _convert(source: Path, out: Path, opset: int, trust: bool) -> dict[str, str]:
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    found = "" if trust else _hazard(source)
    if found:
        return {"untrusted": found}
    function, signature, outputs = _saved_model(source) if source.is_dir() else _keras(source, trust)
    import tf2onnx

    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=opset)
    _rename(proto, [s.name for s in signature], outputs)
    import onnx

    onnx.save(proto, str(out))
    _save_reference(function, signature, [v.name for v in proto.graph.output], out.with_suffix(".npz"))
    return {}


def _save_reference(function: Any, signature: list[Any], outputs: list[str], path: Path) -> None:
    """Random inputs and TensorFlow's outputs on them, for the parent to compare the ONNX with."""
    import numpy as np
    import tensorflow as tf

    generator = np.random.default_rng(0)
    for size in (2, 1):
        inputs = {}
        for spec in signature:
            shape = [d if d is not None else size for d in spec.shape]
            drawn = (
                generator.integers(0, 2, shape)
                if not spec.dtype.is_floating
                else generator.normal(size=shape)
            )
            inputs[spec.name] = drawn.astype(spec.dtype.as_numpy_dtype)
        try:
            results = function(*(tf.constant(v) for v in inputs.values()))
        except Exception:  # noqa: BLE001, S112 - random inputs need not be valid ones
            continue
        arrays: dict[str, Any] = {f"in:{k}": v for k, v in inputs.items()}
        arrays |= {f"out:{n}": r.numpy() for n, r in zip(outputs, results, strict=True)}
        np.savez(path, **arrays)
        return


def _hazard(source: Path) -> str:
    """What in the file would execute code or touch files; empty when nothing is known to."""
    if source.is_dir():
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

        saved = SavedModel()
        saved.ParseFromString((source / "saved_model.pb").read_bytes())
        for meta in saved.meta_graphs:
            functions = [n for f in meta.graph_def.library.function for n in f.node_def]
            found = {n.op for n in functions} | {n.op for n in meta.graph_def.node}
            if own := found & _FILE_OPERATORS:
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


def _keras(source: Path, trust: bool) -> tuple[Any, list[Any], list[str]]:
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(source, compile=False, safe_mode=not trust)
    inputs = list(getattr(model, "inputs", None) or [])
    if not inputs:
        raise ValueError(
            "the Keras model does not know its inputs; build it with keras.Input, or export a SavedModel"
        )
    names = [_clean(getattr(t, "name", "") or f"input_{i}") for i, t in enumerate(inputs)]
    signature = [tf.TensorSpec(t.shape, t.dtype, name=n) for t, n in zip(inputs, names, strict=True)]
    several = len(inputs) > 1

    def call(*tensors: Any) -> list[Any]:
        result = model(list(tensors) if several else tensors[0], training=False)
        return list(_flat(result).values())

    flat = list(getattr(model, "outputs", None) or [])
    outputs = [_clean(n) for n in getattr(model, "output_names", None) or []]
    if len(outputs) != len(flat) or len(set(outputs)) != len(outputs):
        outputs = [f"output_{i}" for i in range(len(flat))] if len(flat) > 1 else ["output"]
    return tf.function(call, input_signature=signature), signature, outputs


def _saved_model(source: Path) -> tuple[Any, list[Any], list[str]]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(source))
    signatures = dict(loaded.signatures)
    if not signatures:
        raise ValueError("the SavedModel has no signature; save it with signatures={'serving_default': …}")
    chosen = signatures.get("serving_default") or signatures[min(signatures)]
    _, keywords = chosen.structured_input_signature
    names = sorted(keywords)
    signature = [tf.TensorSpec(keywords[n].shape, keywords[n].dtype, name=_clean(n)) for n in names]

    def call(*tensors: Any) -> list[Any]:
        result = chosen(**dict(zip(names, tensors, strict=True)))
        return [result[k] for k in sorted(result)]

    function = tf.function(call, input_signature=signature)
    function.edgekit_keep = loaded  # the variables live as long as the loaded object
    return function, signature, [_clean(k) for k in sorted(chosen.structured_outputs)]


def _flat(result: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(result, Mapping):
        return {k: v for key in result for k, v in _flat(result[key], _join(prefix, str(key))).items()}
    if isinstance(result, list | tuple):
        named = {_join(prefix or "output", str(i)): item for i, item in enumerate(result)}
        return {k: v for name, item in named.items() for k, v in _flat(item, name).items()}
    return {prefix or "output": result}


def _join(prefix: str, key: str) -> str:
    return f"{prefix}_{key}" if prefix else key


def _clean(name: str) -> str:
    return name.split(":")[0].replace("/", "_")


def _rename(proto: Any, inputs: list[str], outputs: list[str]) -> None:
    """Give graph inputs and outputs the model's own names, without TensorFlow's ``:0``."""
    wanted: dict[str, str] = {}
    for values, names in ((proto.graph.input, inputs), (proto.graph.output, outputs)):
        for value, name in zip(values, names, strict=True):
            wanted[value.name] = name if name not in wanted.values() else f"{name}_out"
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = wanted[value.name]
    for node in proto.graph.node:
        node.input[:] = [wanted.get(n, n) for n in node.input]
        node.output[:] = [wanted.get(n, n) for n in node.output]


if __name__ == "__main__":
    main(sys.argv[1:])
