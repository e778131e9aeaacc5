"""The engine's tensors, for edgekit diff."""

from edgekit.artifact.manifest import Artifact
from edgekit.diff.onnx_form import OnnxForm


def form(artifact: Artifact) -> OnnxForm:
    return OnnxForm("Acme Engine", artifact.model, kernels=True)
