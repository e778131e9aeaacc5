"""``model.ort``: ONNX Runtime's flatbuffer format, written and read back by the runtime itself."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.errors import BackendError


def write_ort(source: Path, path: Path) -> str:
    """Convert ``source`` and load the result; returns the file's name.

    Extended optimizations only: those above are laid out for this machine's CPU, and the file is for others.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort

    part = path.with_name(f"{path.name}.part.ort")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(part)
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        check = ort.SessionOptions()
        check.log_severity_level = 3
        ort.InferenceSession(part, check, providers=["CPUExecutionProvider"])
    except Exception as e:  # the runtime's exceptions share no base class but this
        raise BackendError(
            f"ONNX Runtime cannot write {path.name}: {e}", hint="build without --set ort_format=true"
        ) from e
    part.replace(path)
    return path.name
