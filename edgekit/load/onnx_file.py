"""``model.onnx``: used unchanged, after the checks that untrusted files need."""

from __future__ import annotations

import onnx

from edgekit.errors import SourceError
from edgekit.graph import io
from edgekit.load.foreign import translated
from edgekit.types import OnnxModel, Permit, SourceSpec


def load(spec: SourceSpec, permit: Permit) -> OnnxModel:
    """Check and describe an ONNX file; see :func:`edgekit.load.load`.

    External data may not leave the folder; the model must be valid for its operator sets and have at
    least one input and output.
    """
    del permit  # nothing in the file is executed, and it is here
    assert spec.path is not None
    proto = io.read_proto(spec.path)
    with translated(f"{spec.path} is not a valid ONNX model", hint="export it again"):
        # By path where weights are outside, so that the checker need not hold more than protobuf can.
        external = io.external_files(spec.path)
        onnx.checker.check_model(str(spec.path) if external else proto, full_check=False)
    model = io.describe(spec.path)
    if not model.outputs:
        raise SourceError(f"{spec.path} has no output", hint="export it again")
    if not model.inputs:
        raise SourceError(f"{spec.path} has no input: its output is a constant", hint="export it again")
    return model
