"""An OpenVINO model, its tensors read as extra results and replaced by extra parameters.

As in :mod:`edgekit.diff.onnx_form`: readers of a replaced tensor are connected to a new parameter, and what
its own operation computes becomes a result. OpenVINO compiles that with its own kernels. A tensor behind a
FakeQuantize holds real values on the integers' grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.backends.openvino.artifact import runtime as import_openvino
from edgekit.diff.forms import INPUT, CutForm, Layer
from edgekit.errors import BackendError, SourceError
from edgekit.types import Option

if TYPE_CHECKING:
    import openvino as ov

    from edgekit.artifact.manifest import Artifact
    from edgekit.types import Array

_PLUMBING = frozenset({"Constant", "Parameter", "Result", "Convert", "ShapeOf"})
_ROUNDS = "FakeQuantize"
_BITS = {"i8": 8, "u8": 8, "i4": 4, "u4": 4, "f16": 16, "bf16": 16}


def form(artifact: Artifact) -> OpenvinoForm:
    """OpenVINO's, with the artifact's runtime options."""
    return OpenvinoForm("OpenVINO", artifact.model, artifact.manifest.runtime)


class OpenvinoForm(CutForm["ov.InferRequest"]):
    """See :class:`edgekit.diff.forms.Form`. ``options`` are the artifact's runtime options."""

    def __init__(self, title: str, path: Path, options: Mapping[str, Option]) -> None:
        self.title, self._path, self._ov = title, path, import_openvino()
        self._core = self._ov.Core()
        self._precision = str(options.get("inference_precision", "f32"))
        self._model = self._read()

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that the results read."""
        return tuple(self._name(r.input_value(0)) for r in self._model.get_results())

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every floating-point tensor that depends on the inputs."""
        parameters = self._model.get_parameters()
        layers = [self._layer(p.output(0), INPUT) for p in parameters]
        live = {p.get_friendly_name() for p in parameters}
        for op in self._model.get_ordered_ops():
            if not any(v.get_node().get_friendly_name() in live for v in op.input_values()):
                continue
            live.add(op.get_friendly_name())
            if op.get_type_name() not in _PLUMBING:
                layers += [
                    self._layer(o, op.get_type_name())
                    for o in op.outputs()
                    if _type(o) in ("f32", "f16", "bf16")
                ]
        return tuple(layers)

    @cached_property
    def weight_bits(self) -> int:
        """Width of the coarsest constant matrix."""
        constants = [o.output(0) for o in self._model.get_ordered_ops() if o.get_type_name() == "Constant"]
        widths = [_BITS.get(_type(c), 32) for c in constants if len(c.get_shape()) >= 2]
        return min(widths, default=32)

    @property
    def float_bits(self) -> int:
        """Significant bits of the inference precision."""
        return {"f16": 11, "bf16": 8}.get(self._precision, 24)

    # --- reading and running it -----------------------------------------------------------------------------

    def _read(self) -> ov.Model:
        try:
            return self._core.read_model(str(self._path))
        except RuntimeError as error:
            raise SourceError(
                f"OpenVINO does not read {self._path}: {error}", hint="build or copy it again"
            ) from error

    def _layer(self, output: ov.Output, op: str) -> Layer:
        name = self._name(output)
        node = output.get_node()
        rounds = op == _ROUNDS
        source = node.input_value(0) if rounds else None
        before = [] if source is None else [self._name(source), *map(str, source.get_names() or [])]
        own = sorted(map(str, output.get_names() or []))
        return Layer(
            tensor=name,
            node=node.get_friendly_name(),
            op=op,
            module="",
            names=tuple(dict.fromkeys((*before, *own, name))),
            bits=8 if rounds else 0,
        )

    def _name(self, output: ov.Output) -> str:
        node = output.get_node()
        stem = str(node.get_friendly_name())
        return stem if len(node.outputs()) == 1 else f"{stem}.{output.get_index()}"

    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], read: Iterable[str]
    ) -> dict[str, Array]:
        cut = sorted(values)
        names = tuple(dict.fromkeys((*cut, *read, *self.outputs)))
        feeds = [self._input(p, inputs) for p in self._model.get_parameters()]
        results = self._prepared(cut, names).infer(
            [*feeds, *(np.asarray(values[n], np.float32) for n in cut)]
        )
        arrays = [results[i] for i in range(len(names))]
        return {
            n: np.array(a, np.float32 if a.dtype.kind == "f" else a.dtype)
            for n, a in zip(names, arrays, strict=True)
        }

    def _input(self, parameter: ov.Node, inputs: Mapping[str, Array]) -> Array:
        names = {str(parameter.get_friendly_name()), *map(str, parameter.output(0).get_names() or [])}
        name = next((n for n in inputs if n in names), None)
        if name is None:
            raise BackendError(
                f"{self._path.name} has an input {min(names)!r}, the samples have: {', '.join(inputs)}",
                hint="compare models with inputs of the same names",
            )
        return np.asarray(inputs[name], order="C")

    def _prepare(self, cut: tuple[str, ...], read: tuple[str, ...]) -> ov.InferRequest:
        settings = {"INFERENCE_PRECISION_HINT": self._precision, "INFERENCE_NUM_THREADS": "1"}
        return self._core.compile_model(self._cut(cut, read), "CPU", settings).create_infer_request()

    def _cut(self, cut: tuple[str, ...], read: tuple[str, ...]) -> ov.Model:
        """A copy in which readers of ``cut`` take new parameters, behind the model's own; ``read`` are its results."""
        opset = self._ov.opset13
        model = self._read()  # anew: it is changed in place
        by_name = {self._name(o): o for op in model.get_ordered_ops() for o in op.outputs()}
        results = [opset.result(by_name[name]) for name in read]
        ends = {r.get_friendly_name() for r in results}
        parameters = list(model.get_parameters())
        for name in cut:
            source = by_name[name]
            parameter = opset.parameter(source.get_partial_shape(), source.get_element_type())
            for reader in source.get_target_inputs():
                if reader.get_node().get_friendly_name() not in ends:
                    reader.replace_source_output(parameter.output(0))
            parameters.append(parameter)
        return self._ov.Model(results, parameters, "edgekit-diff")


def _type(output: ov.Output) -> str:
    return str(output.get_element_type().get_type_name())
