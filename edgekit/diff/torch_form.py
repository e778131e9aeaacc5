"""A PyTorch module, read through forward hooks: the output of every module that is called once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from edgekit.diff.forms import MODULE, Layer
from edgekit.errors import UsageError
from edgekit.graph.nested import call, unwrap
from edgekit.types import TorchModel

if TYPE_CHECKING:
    from edgekit.types import Array


class TorchForm:
    """See :class:`edgekit.diff.forms.Form`. Only the first of a walk: nothing is compared with its own layers.

    ``names`` are the outputs' names, as exported.
    """

    title = "PyTorch"
    weight_bits = 32
    float_bits = 24

    def __init__(self, model: TorchModel, names: tuple[str, ...]) -> None:
        self._model, self.outputs = model, names
        inner = unwrap(model.module)[0]
        self._modules = {path: module for path, module in inner.named_modules() if path}
        modules = [_layer(path, MODULE) for path in self._modules]
        self.layers = (*modules, *(_layer(name, "output") for name in names if name not in self._modules))

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of modules and of the model."""
        outputs: dict[str, list[Array]] = {}
        handles = [m.register_forward_hook(_recorder(outputs, path)) for path, m in self._modules.items()]
        try:
            with torch.inference_mode():
                results = call(self._model.module, {n: torch.from_numpy(a) for n, a in inputs.items()})
        finally:
            for handle in handles:
                handle.remove()
        once = {path: values[0] for path, values in outputs.items() if len(values) == 1}
        return once | {n: v.cpu().numpy() for n, v in zip(self.outputs, results.values(), strict=True)}

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:  # noqa: ARG002
        """Not possible: a module's Python code cannot be cut."""
        raise UsageError(
            "a PyTorch module cannot be the second of two models",
            hint="name the source first: edgekit diff SOURCE B",
        )

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """As they are."""
        return dict(values)


def _recorder(outputs: dict[str, list[Array]], path: str) -> Callable[..., None]:
    def record(_module: torch.nn.Module, _inputs: object, output: object) -> None:
        first = output[0] if isinstance(output, tuple | list) and output else output
        if isinstance(first, torch.Tensor) and first.is_floating_point():
            # copied: a later operator of the module may write into it
            outputs.setdefault(path, []).append(first.detach().float().cpu().numpy().copy())

    return record


def _layer(name: str, op: str) -> Layer:
    module = name if op == MODULE else ""
    return Layer(tensor=name, node=name, op=op, module=module, names=(name,), owner=name, owner_module=module)
