"""The reference that every artifact is compared with: the source as it is, run on the same samples."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import BackendError, MissingExtraError, RuntimeCrashError, SourceError
from edgekit.graph.records import ModelRecord
from edgekit.types import OnnxModel, Sample, TorchModel, names

if TYPE_CHECKING:
    from edgekit.types import Array

_MOST_PARAMETERS = 100_000_000


def answers(
    model: TorchModel | OnnxModel,
    record: ModelRecord,
    samples: Iterable[Sample],
    states: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Array]]:
    """Outputs by name, one row a sample; one row is in memory at a time. ``states``: see :func:`run_artifact`, of an
    ONNX file alone; a module's samples are taken one by one."""
    if isinstance(model, OnnxModel):
        return _in_onnxruntime(record, samples, states)
    return _in_torch(model, record, samples)


def _in_torch(
    model: TorchModel, record: ModelRecord, samples: Iterable[Sample]
) -> Iterator[dict[str, Array]]:
    import torch

    from edgekit.graph.nested import call

    wanted = names(record.model.outputs)
    for sample in samples:
        inputs = {name: torch.from_numpy(array) for name, array in sample.inputs.items()}
        with torch.inference_mode():
            outputs = call(model.module, inputs)
        if len(outputs) != len(wanted):
            raise SourceError(
                f"the module gave {len(outputs)} outputs for one of the samples, {len(wanted)} for its example",
                hint="let forward return the same outputs for every input",
            )
        # By position: the graph renames an output that is called like an input.
        yield {name: value.cpu().numpy() for name, value in zip(wanted, outputs.values(), strict=True)}


def in_float64(
    model: TorchModel | OnnxModel, record: ModelRecord, samples: Iterable[Sample]
) -> Iterator[dict[str, Array]]:
    """The same answers computed in float64, as far as they can be: nothing for an ONNX file, for a module above
    :data:`_MOST_PARAMETERS`, and from the first sample on that the module cannot take in float64."""
    if isinstance(model, OnnxModel):
        return
    import torch

    from edgekit.graph.nested import attempt

    if sum(p.numel() for p in model.module.parameters()) > _MOST_PARAMETERS:
        return
    wanted = names(record.model.outputs)
    with suppress(
        RuntimeError, TypeError
    ):  # modules that cannot be copied: hooks, handles, sparse parameters
        module = copy.deepcopy(model.module).double()
        for sample in samples:
            tensors = {name: torch.from_numpy(array) for name, array in sample.inputs.items()}
            wide = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
            outputs = attempt(module, wide)
            if isinstance(outputs, Exception) or len(outputs) != len(wanted):
                return
            yield {name: value.cpu().numpy() for name, value in zip(wanted, outputs.values(), strict=True)}


def _in_onnxruntime(
    record: ModelRecord, samples: Iterable[Sample], states: Mapping[str, str] | None
) -> Iterator[dict[str, Array]]:
    runnable = Runnable(backend="onnxruntime", main=record.model.path, outputs=names(record.model.outputs))
    try:
        result = run_artifact(runnable, (s.inputs for s in samples), states=states)
    except (MissingExtraError, RuntimeCrashError):
        raise
    except BackendError as error:
        raise SourceError(
            f"the model cannot be run as it is: {error.message}",
            hint="run it in ONNX Runtime by hand; an operator's attributes or the shapes that it makes are wrong",
        ) from error
    with result:
        yield from result.outputs
