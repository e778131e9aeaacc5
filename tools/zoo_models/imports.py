"""What every stage needs, imported once in the process that the stages' own are forked from."""

import onnx  # noqa: F401
import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch.export  # noqa: F401
import transformers  # noqa: F401

import edgekit.core.targets
import edgekit.graph.export
import edgekit.graph.passes
import edgekit.quantize.driver  # noqa: F401
from zoo_models import registry

registry()
