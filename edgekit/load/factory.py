"""``file.py:factory`` and ``package.module:factory``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from edgekit.errors import SourceError
from edgekit.load import module as modules
from edgekit.load.usercode import run
from edgekit.types import Permit, SourceSpec, TorchModel


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """Call the factory; see :func:`edgekit.load.load`."""

    def build(factory: Any) -> TorchModel:
        made = factory() if callable(factory) and not isinstance(factory, torch.nn.Module) else factory
        # Bound, and so run once, while the file's siblings can still be imported.
        return from_result(made, spec.text, permit.example)

    return run(spec.text, build)


def from_result(made: Any, what: str, example: Callable[[], Any] | None) -> TorchModel:
    """A factory's result: a module, ``(module, example_inputs)`` or a :class:`TorchModel`."""
    if isinstance(made, TorchModel):
        model = modules.bind(made.module, dict(made.example_inputs), what=what)
        return modules.complete(
            model,
            task=made.task,
            dynamic_axes=made.dynamic_axes,
            labels=tuple(made.labels),
            preprocessing=made.preprocessing,
        )
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], torch.export.ExportedProgram):
        made = made[0]
    if isinstance(made, torch.export.ExportedProgram):
        from edgekit.load.exported import from_program

        return from_program(made, what)  # a program takes inputs in the form it was exported with, no other
    if isinstance(made, tuple) and len(made) == 2 and modules.is_module(made[0]):
        return modules.bind(made[0], made[1], what=what)
    if modules.is_module(made):
        return modules.bind(made, _own_example(made, what, example), what=what)
    raise SourceError(
        f"{what} returned {_describe(made)}", hint="return (module, example_inputs), or the module alone"
    )


def _own_example(module: Any, what: str, example: Callable[[], Any] | None) -> Any:
    if getattr(module, "example_inputs", None) is not None:
        return module.example_inputs
    if getattr(module, "example_input_array", None) is not None:  # PyTorch Lightning's name for it
        return module.example_input_array
    if example is not None:
        return example()
    names = ", ".join(n for n in inspect.signature(module.forward).parameters)
    raise SourceError(
        f"{what} returned a module without example inputs",
        hint=f"return (module, example_inputs) with a tensor for each of: {names}; or pass calibration data",
    )


def _describe(made: Any) -> str:
    if made is None:
        return "nothing"
    if isinstance(made, tuple):
        return f"a tuple of {len(made)} ({', '.join(type(m).__name__ for m in made)})"
    if isinstance(made, type):
        return f"the class {made.__name__}, not a module made from it"
    return f"a {type(made).__name__}"
