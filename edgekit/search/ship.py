"""What is made of a compressed model in the end: a target's artifact, coded without loss.

The one path for a recipe's ``[ship]`` table and for the search under a budget: equal recipes give equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edgekit.artifact.manifest import Artifact
from edgekit.compress.recipes import Ship
from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.devices.execute import run_artifact
from edgekit.devices.runnable import Runnable
from edgekit.errors import DataError
from edgekit.load.source import Source
from edgekit.pipeline import build
from edgekit.pipeline.pixels import Pixels
from edgekit.pipeline.stages import BuildContext
from edgekit.types import OnnxModel, TensorSpec, TorchModel

if TYPE_CHECKING:
    import torch

    from edgekit.types import Array


_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """The artifact that passed its gates, and what its model files weigh as they travel (``packed``)."""

    artifact: Artifact
    packed: Path
    size: int


def ship(context: BuildContext, source: Source, wanted: Ship) -> Shipped:
    """Build ``wanted.target`` of a plan, run it, gate it, and code its model files.

    Raises what a build raises; an artifact that does not pass its gates is among the errors.
    """
    options = shipped_options(context.options, wanted)
    request = build.Request(
        source=source.spec,
        targets=targets.select(wanted.target),
        options=options,
        calibration=calibration(options),
        evaluation=options.eval or None,
    )
    outcomes = build.run(request, replace(context, options=options))
    build.raise_failures(outcomes, options)
    artifact = outcomes[0].artifact
    assert artifact is not None
    files = [artifact.directory / f.name for f in artifact.manifest.files]
    if not wanted.pack:
        return Shipped(artifact=artifact, packed=files[0], size=sum(f.stat().st_size for f in files))
    packed = pack(files, artifact.directory.parent / f"{wanted.target}.ekz")
    return Shipped(artifact=artifact, packed=packed, size=packed.stat().st_size)


def shipped_options(options: Options, wanted: Ship) -> Options:
    """The options of the build: those of the command, the recipe's range method, no recipe of its own."""
    return replace(options, target=(wanted.target,), method=wanted.method, recipe="", speed_gate=False)


def calibration(options: Options) -> str | None:
    """``--calib``, else what is trained on: real inputs either way."""
    return options.calib or options.train or None


def pack(files: list[Path], out: Path) -> Path:
    """The model's files in one ``.ekz``."""
    from edgekit import entropy
    from edgekit.core.store import scratch

    if len(files) == 1:
        entropy.pack(files[0], out)
        return out
    with scratch(out.parent) as folder:
        inner = folder / out.stem
        inner.mkdir()
        for file in files:
            shutil.copyfile(file, inner / file.name)
        entropy.pack(inner, folder / out.name)
        (folder / out.name).replace(out)
    return out


def from_source(runnable: Runnable, pixels: Pixels | None) -> Runnable:
    """``runnable`` so that it takes the source's inputs, also where preprocessing was folded into it."""
    return runnable if pixels is None else replace(runnable, preprocess=pixels.fed)


class Judge(Generic[_T]):
    """A task's ``metric`` of files on their real runtime.

    The metric wants a module, so it is called with a stand-in: once with one that answers as the original does
    (``base`` is what that gave), then for all files twice: with one that notes its inputs, and, after everything was
    run in one fresh process, with one that gives the runtime's answers.
    """

    def __init__(self, metric: Callable[[Any], _T], model: TorchModel) -> None:
        self._metric, self._model = metric, model
        first = _stand_in(model, ())
        self.base = metric(first)
        self._forms = tuple(first.forms)

    def of(self, runnable: Runnable, onnx: tuple[TensorSpec, ...]) -> _T:
        """The metric of ``runnable``. ``onnx`` are the graph's inputs, which say whether it takes batches."""
        stand_in = _stand_in(self._model, self._forms)
        self._metric(stand_in)
        units = {s.name: s.shape[0] if s.shape and isinstance(s.shape[0], int) else 0 for s in onnx}
        calls = [list(_pieces(inputs, units)) for inputs in stand_in.noted]
        with run_artifact(runnable, (piece for pieces in calls for piece in pieces)) as result:
            rows = iter(result.outputs)
            stand_in.answers = [_joined([next(rows) for _ in pieces]) for pieces in calls]
        return self._metric(stand_in)


def _stand_in(model: TorchModel, known: Sequence[Any]) -> Any:
    import torch

    class StandIn(torch.nn.Module):
        """In the place of the model: first notes, then answers. ``known`` are the original's answers, call by call:
        they need not be computed again, since only their form is wanted."""

        def __init__(self) -> None:
            super().__init__()
            self.noted: list[dict[str, Array]] = []
            self.forms: list[Any] = []
            self.answers: list[list[Array]] = []
            self.at = 0

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not self.answers:
                inputs = dict(zip(model.example_inputs, args, strict=False)) | kwargs
                self.noted.append({k: v.detach().cpu().numpy() for k, v in inputs.items()})
                if len(self.forms) < len(known):
                    self.forms.append(known[len(self.forms)])
                else:
                    with torch.no_grad():
                        self.forms.append(model.module(**inputs))
                return self.forms[-1]
            self.at += 1
            return _filled(self.forms[self.at - 1], self.answers[self.at - 1])

    return StandIn().eval()


def _filled(form: Any, arrays: list[Array]) -> Any:
    """``form`` with its tensors replaced in order."""
    import torch
    from torch.utils import _pytree as tree

    leaves, spec = tree.tree_flatten(form)
    tensors = iter(arrays)
    count = sum(isinstance(x, torch.Tensor) for x in leaves)
    if count != len(arrays):
        raise DataError(
            f"the model returns {count} tensors, the artifact {len(arrays)}",
            hint="let forward return a tensor, or a tuple or dict of tensors",
        )
    new = [torch.from_numpy(next(tensors).copy()) if isinstance(x, torch.Tensor) else x for x in leaves]
    return tree.tree_unflatten(new, spec)


def _pieces(inputs: Mapping[str, Array], units: Mapping[str, int]) -> Iterator[dict[str, Array]]:
    """A batch as the graph takes it: whole where its batch axis is free, else in pieces of the graph's size."""
    fixed = {units[name] for name in inputs if units.get(name)}
    rows = {len(array) for array in inputs.values()}
    if not fixed or rows == fixed:
        yield dict(inputs)
        return
    if len(fixed) > 1 or len(rows) > 1 or next(iter(rows)) % next(iter(fixed)):
        raise DataError(
            f"batches of {sorted(rows)} do not fit a graph of {sorted(fixed)} rows",
            hint="declare the batch axis dynamic (TorchModel.dynamic_axes)",
        )
    size = next(iter(fixed))
    for at in range(0, next(iter(rows)), size):
        yield {name: array[at : at + size] for name, array in inputs.items()}


def _joined(pieces: list[Mapping[str, Array]]) -> list[Array]:
    import numpy as np

    return [
        np.concatenate([p[name] for p in pieces]) if len(pieces) > 1 else pieces[0][name]
        for name in pieces[0]
    ]


def estimate(files: list[Path], graph_file: OnnxModel | None) -> int:
    """About how many bytes the coded files will have, in a hundredth of the time that coding takes.

    The order-0 entropy of each tensor's values where they are few, else of its bytes by place; a third of the rest.
    """
    whole = sum(f.stat().st_size for f in files)
    if graph_file is None:
        return whole
    from edgekit.graph import io

    stored = coded = 0.0
    for value in io.load(graph_file.path).graph.initializers.values():
        if value.const_value is not None:
            array = value.const_value.numpy()
            stored += array.nbytes
            coded += _entropy(array)
    return round(coded + max(0.0, whole - stored) / 3)


def estimate_weights(module: torch.nn.Module) -> int:
    """About how many bytes a float target's coded files will have, from the weights alone."""
    tensors = [t.detach().cpu().numpy() for t in module.state_dict().values()]
    return round(sum(_entropy(array) for array in tensors))


_FEW = 4096


def _entropy(array: Array) -> float:
    import numpy as np

    if array.nbytes < 64:
        return float(array.nbytes)
    if array.dtype.hasobject or array.dtype.itemsize not in (1, 2, 4, 8):
        return float(array.nbytes)
    flat = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    values, counts = np.unique(flat, return_counts=True)
    if len(values) <= min(_FEW, len(flat) // 4):
        return _bytes(counts) + len(values) * array.dtype.itemsize
    zero = flat == 0
    mask = _bytes(np.array([int(zero.sum()), int((~zero).sum())]))
    planes = flat[~zero].view(np.uint8).reshape(-1, array.dtype.itemsize)
    return mask + sum(_bytes(np.bincount(plane, minlength=256)) for plane in planes.T)


def _bytes(counts: Any) -> float:
    import numpy as np

    some = counts[counts > 0].astype(np.float64)
    return float((some * np.log2(some.sum() / some)).sum() / 8)


def module_of(model: TorchModel, module: torch.nn.Module) -> TorchModel:
    """The same model with another module."""
    return replace(model, module=module)
