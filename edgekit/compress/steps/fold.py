"""The step ``fold``: batch normalization into the weights before it.

Every target's export does this anyway. A step that chooses the weights' values has to come after it: few values times
a factor for each channel are many values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from edgekit.compress.steps.prune import prunable
from edgekit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from edgekit.compress.step import Context


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Fold each batch norm that reads what one linear or convolution layer wrote. Nothing is lost; a model without
    such stays as it is."""

    NAME: ClassVar[str] = "fold"

    def apply(self, model: torch.nn.Module, context: Context) -> torch.nn.Module:
        """Fold in place and return ``model``. Raises ``UsageError`` without example inputs."""
        import torch

        from edgekit.compress.steps import qat_batch_norm as norms

        if not context.example_inputs:
            raise UsageError("fold needs example inputs", hint="let the factory return (module, inputs)")
        found = foldable(model.eval(), context.example_inputs)
        norms.fold(model, found)
        context.record({layer: torch.tensor(list(norm.encode())) for layer, norm in found.items()})
        return model

    def restore(self, model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Module:
        """The same batch norms out of a fresh module; their layers get a bias."""
        from edgekit.compress.steps import qat_batch_norm as norms

        for layer, norm in tensors.items():
            norms.add_bias(model.get_submodule(layer))
            norms.drop(model, bytes(norm.tolist()).decode())
        return model.eval()


def foldable(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The batch norm behind each layer that can take it up. ``model`` is in evaluation mode."""
    import torch

    from edgekit.compress.step import forward
    from edgekit.compress.steps import qat_batch_norm as norms
    from edgekit.graph.nested import flatten

    def run(module: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([t.float().flatten() for t in flatten(forward(module, inputs)).values()])

    return norms.pairs(model, prunable(model), run)
