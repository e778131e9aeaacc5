"""What the user has, to a :class:`TorchModel` or an :class:`OnnxModel`, one file a kind; and their data, to samples.

In come SOURCE and DATA texts, files and the user's own Python, all of it untrusted; out go models with example inputs,
samples that fit them, and a record of every file that was read, by which an unchanged source is recognised.

``parse`` and everything of :mod:`edgekit.load.record` are light; torch and the rest are imported when a
source is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from edgekit.core.plugins import loader
from edgekit.load.record import Recorder as Recorder
from edgekit.load.spec import parse as parse
from edgekit.types import OnnxModel, Permit, SourceSpec, TorchModel

if TYPE_CHECKING:
    import torch


def load(
    spec: SourceSpec, *, trust: bool = False, network: bool = False, needs_example: object = None
) -> TorchModel | OnnxModel:
    """Load a source.

    ``trust`` allows what can execute code from the source's files (pickles, a hub model's own code);
    ``network`` allows downloads; ``needs_example`` is called for example inputs when the source has none
    (usually: the first calibration sample), and may be the inputs themselves.

    Raises :class:`~edgekit.errors.SourceError` and its kinds.
    """
    example: Callable[[], object] | None = needs_example if callable(needs_example) else None
    if needs_example is not None and example is None:
        example = lambda: needs_example  # noqa: E731
    return loader(spec.kind)(spec, Permit(trust=trust, network=network, example=example))


def from_module(
    module: torch.nn.Module,
    example_inputs: object,
    *,
    task: str = "",
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
    labels: tuple[str, ...] = (),
) -> TorchModel:
    """A module in memory with example inputs (a tensor, a tuple by position, or a dict by name)."""
    from edgekit.load import module as modules

    model = modules.bind(module, example_inputs, what=type(module).__name__)
    return modules.complete(model, task=task, dynamic_axes=dynamic_axes or {}, labels=labels)
