"""``model.pt``: a pickle. Read with ``weights_only=True`` it gives tensors, which are not yet a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgekit.errors import SourceError, UntrustedSourceError
from edgekit.load import factory
from edgekit.load import module as modules
from edgekit.load.usercode import guarded
from edgekit.types import Permit, SourceSpec, TorchModel

_WITHOUT = (
    "write a factory that builds the module and calls load_state_dict(torch.load(path, weights_only=True))"
)


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """A pickled module, with ``trust`` only; see :func:`edgekit.load.load`."""
    path = spec.path
    assert path is not None
    try:
        made = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything for what it refuses or cannot read
        if not permit.trust:
            raise UntrustedSourceError(
                f"{path} is a pickle that holds more than tensors: loading it can execute any program",
                hint=f"pass --trust only if you made the file yourself or trust who did; or {_WITHOUT}",
            ) from error
        with guarded(f"loading {path}"):
            made = torch.load(path, map_location="cpu", weights_only=False)
    if isinstance(made, torch.jit.ScriptModule) or modules.is_module(made):
        return factory.from_result(made, spec.text, permit.example)
    raise SourceError(f"{path} holds {_describe(made)}, not a model", hint=_WITHOUT)


def _describe(made: Any) -> str:
    if isinstance(made, Mapping):
        tensors = sum(isinstance(v, torch.Tensor) for v in made.values())
        if tensors:
            return f"a state dict of {tensors} tensors"
        return f"a checkpoint with the keys {', '.join(map(str, list(made)[:8]))}"
    return f"a {type(made).__name__}"
