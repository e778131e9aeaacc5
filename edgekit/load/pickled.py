"""``model.pt``: a pickle. Read with ``weights_only=True`` it gives tensors, which are not yet a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgekit.errors import SourceError, UntrustedSourceError
from edgekit.load import factory
from edgekit.load.tensors import NotTensorsError, read_tensors
from edgekit.load.usercode import guarded
from edgekit.types import Permit, SourceSpec, TorchModel

_WITHOUT = (
    "write a factory that builds the module and calls load_state_dict(torch.load(path, weights_only=True))"
)


def load(spec: SourceSpec, permit: Permit) -> TorchModel:
    """A pickled module, with ``trust`` only; see :func:`edgekit.load.load`."""
    path = spec.path
    assert path is not None
    content: object
    try:
        content = read_tensors(path)
    except NotTensorsError as error:
        if not permit.trust:
            raise UntrustedSourceError(
                f"{path} is a pickle that holds more than tensors: loading it can execute any program",
                hint=f"pass --trust only if you made the file yourself or trust who did; or {_WITHOUT}",
            ) from error
        with guarded(f"loading {path}"):
            content = torch.load(path, map_location="cpu", weights_only=False)
    if isinstance(content, torch.nn.Module | torch.export.ExportedProgram):
        return factory.from_result(content, spec.text, permit.example)
    raise SourceError(f"{path} holds {_describe(content)}, not a model", hint=_WITHOUT)


def _describe(content: object) -> str:
    if isinstance(content, Mapping):
        tensors = sum(isinstance(v, torch.Tensor) for v in content.values())
        if tensors:
            return f"a state dict of {tensors} tensors"
        return f"a checkpoint with the keys {', '.join(map(str, list(content)[:8]))}"
    return f"a {type(content).__name__}"
