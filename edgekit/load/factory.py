"""``file.py:factory`` and ``package.module:factory``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from edgekit.errors import SourceError
from edgekit.graph.nested import signature
from edgekit.load import module as modules
from edgekit.load.exported import from_program
from edgekit.load.usercode import run
from edgekit.types import Permit, SourceSpec, TorchModel


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """Call the factory; see :func:`edgekit.load.load`."""

    def build(factory: object) -> TorchModel:
        result = factory() if callable(factory) and not isinstance(factory, torch.nn.Module) else factory
        # Bound, and so run once, while the file's siblings can still be imported.
        return from_result(result, spec.text, permit.example)

    return run(spec.text, build)


def from_result(result: object, what: str, example: Callable[[], object] | None) -> TorchModel:
    """A factory's result: a module, ``(module, example_inputs)`` or a :class:`TorchModel`."""
    if isinstance(result, TorchModel):
        inputs: object = result.example_inputs  # users write a tuple here, too
        by_name = dict(inputs) if isinstance(inputs, Mapping) else inputs
        model = modules.bind(result.module, by_name, what=what)
        return modules.complete(
            model,
            task=result.task,
            dynamic_axes=result.dynamic_axes,
            labels=tuple(result.labels),
            preprocessing=result.preprocessing,
            postprocessing=result.postprocessing,
        )
    module, *inputs = result if isinstance(result, tuple) and len(result) == 2 else (result,)
    if isinstance(module, torch.export.ExportedProgram):
        return from_program(module, what)  # a program takes inputs in the form it was exported with, no other
    if isinstance(module, torch.nn.Module):
        return modules.bind(module, inputs[0] if inputs else _own_example(module, what, example), what=what)
    raise SourceError(
        f"{what} returned {_describe(result)}", hint="return (module, example_inputs), or the module alone"
    )


def _own_example(module: torch.nn.Module, what: str, example: Callable[[], object] | None) -> object:
    for attribute in ("example_inputs", "example_input_array"):  # the second is PyTorch Lightning's
        if (own := getattr(module, attribute, None)) is not None:
            return own
    if example is not None:
        return example()
    names = ", ".join(signature(module).parameters)
    raise SourceError(
        f"{what} returned a module without example inputs",
        hint=f"return (module, example_inputs) with a tensor for each of: {names}; or pass calibration data",
    )


def _describe(result: object) -> str:
    if result is None:
        return "nothing"
    if isinstance(result, tuple):
        return f"a tuple of {len(result)} ({', '.join(type(m).__name__ for m in result)})"
    if isinstance(result, type):
        return f"the class {result.__name__}, not a module made from it"
    return f"a {type(result).__name__}"
