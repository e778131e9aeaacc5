"""Sources: what the user has, to a :class:`TorchModel` or an :class:`OnnxModel`. One file a kind.

``parse`` and everything of :mod:`edgekit.load.record` are light; torch and the rest are imported when a
source is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgekit.load.record import Dependency as Dependency
from edgekit.load.record import Recorder as Recorder
from edgekit.load.record import environment_fingerprint as environment_fingerprint
from edgekit.load.record import unchanged as unchanged
from edgekit.load.spec import parse as parse
from edgekit.types import OnnxModel, SourceSpec, TorchModel

if TYPE_CHECKING:
    import torch


def load(
    spec: SourceSpec, *, trust: bool = False, network: bool = False, needs_example: Any = None
) -> TorchModel | OnnxModel:
    """Load a source.

    ``trust`` allows what can execute code from the source's files (pickles, a hub model's own code);
    ``network`` allows downloads; ``needs_example`` is called for example inputs when the source has none
    (usually: the first calibration sample), and may be the inputs themselves.

    Raises :class:`~edgekit.errors.SourceError` and its kinds.
    """
    example: Callable[[], Any] | None = needs_example if callable(needs_example) else None
    if needs_example is not None and example is None:
        example = lambda: needs_example  # noqa: E731
    match spec.kind:
        case "factory":
            from edgekit.load import factory

            return factory.load(spec, example)
        case "pt2":
            from edgekit.load import exported

            return exported.load(spec, trust=trust)
        case "pt":
            from edgekit.load import pickled

            return pickled.load(spec, trust=trust, example=example)
        case "onnx":
            from edgekit.load import onnx_file

            return onnx_file.load(spec)
        case "hf":
            from edgekit.load import huggingface

            return huggingface.load(spec, trust=trust, network=network)
        case "plan":
            from edgekit.compress import plan

            return plan.load(spec, trust=trust, network=network)
        case "savedmodel" | "keras":
            from edgekit.load import tensorflow

            return tensorflow.load(spec, trust=trust)
    raise AssertionError(f"parse() gives no kind {spec.kind!r}")


def from_module(
    module: torch.nn.Module,
    example_inputs: Any,
    *,
    task: str = "",
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    labels: tuple[str, ...] = (),
) -> TorchModel:
    """A module in memory with example inputs (a tensor, a tuple by position, or a dict by name)."""
    from edgekit.load import module as modules

    model = modules.bind(module, example_inputs, what=type(module).__name__)
    return modules.complete(model, task=task, dynamic_axes=dynamic_axes or {}, labels=labels)
