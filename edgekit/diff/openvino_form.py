"""An OpenVINO model, its tensors read as extra results and replaced by extra parameters.

As in :mod:`edgekit.diff.onnx_form`: readers of a replaced tensor are connected to a new parameter, and what
its own operation computes becomes a result. OpenVINO compiles that with its own kernels. A tensor behind a
FakeQuantize holds real values on the integers' grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.diff.forms import INPUT, Layer
from edgekit.errors import BackendError
from edgekit.types import Option

if TYPE_CHECKING:
    from edgekit.artifact.manifest import Artifact
    from edgekit.types import Array

_PLUMBING = frozenset({"Constant", "Parameter", "Result", "Convert", "ShapeOf"})
_ROUNDS = "FakeQuantize"
_BITS = {"i8": 8, "u8": 8, "i4": 4, "u4": 4, "f16": 16, "bf16": 16}


def form(artifact: Artifact) -> OpenvinoForm:
    """OpenVINO's, with the artifact's runtime options."""
    return OpenvinoForm("OpenVINO", artifact.model, artifact.manifest.runtime)


class OpenvinoForm:
    """See :class:`edgekit.diff.forms.Form`. ``runtime`` are the artifact's runtime options."""

    def __init__(self, title: str, path: Path, runtime: Mapping[str, Option]) -> None:
        from edgekit.backends.openvino.lower import runtime as openvino

        self.title, self._path, self._ov = title, path, openvino()
        self._core = self._ov.Core()
        self._precision = str(runtime.get("inference_precision", "f32"))
        self._model = self._read()
        self._compiled: dict[tuple[str, ...], Any] = {}

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that the results read."""
        return tuple(self._name(r.input_value(0)) for r in self._model.get_results())

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every floating-point tensor that depends on the inputs."""
        inputs = [p.output(0) for p in self._model.get_parameters()]
        found = [self._layer(o, INPUT) for o in inputs]
        live = {p.get_friendly_name() for p in self._model.get_parameters()}
        for op in self._model.get_ordered_ops():
            sources = [v.get_node().get_friendly_name() for v in op.input_values()]
            if not any(s in live for s in sources):
                continue
            live.add(op.get_friendly_name())
            if op.get_type_name() in _PLUMBING:
                continue
            kinds = [str(o.get_element_type().get_type_name()) for o in op.outputs()]
            found += [
                self._layer(o, op.get_type_name())
                for o, kind in zip(op.outputs(), kinds, strict=True)
                if kind in ("f32", "f16", "bf16")
            ]
        return tuple(found)

    @cached_property
    def weight_bits(self) -> int:
        """Width of the coarsest constant matrix."""
        constants = [o for o in self._model.get_ordered_ops() if o.get_type_name() == "Constant"]
        kinds = [
            str(o.get_element_type().get_type_name()) for o in constants if len(o.output(0).get_shape()) >= 2
        ]
        found = [_BITS.get(kind, 32) for kind in kinds]
        return min(found, default=32)

    @property
    def float_bits(self) -> int:
        """Significant bits of the inference precision."""
        return {"f16": 11, "bf16": 8}.get(self._precision, 24)

    def free(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with every tensor as a result."""
        tensors = [layer.tensor for layer in self.layers if layer.op != INPUT]
        return dict(inputs) | self._run(inputs, {}, tensors)

    def forced(self, inputs: Mapping[str, Array], values: Mapping[str, Array]) -> dict[str, Array]:
        """One inference with the tensors of ``values`` replaced."""
        return self._run(inputs, values, [])

    def received(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """As they are: operations round for themselves."""
        return dict(values)

    # --- reading and running it -----------------------------------------------------------------------------

    def _read(self) -> Any:
        try:
            return self._core.read_model(str(self._path))
        except RuntimeError as error:
            raise BackendError(
                f"OpenVINO does not read {self._path}: {error}", hint="build or copy it again"
            ) from error

    def _layer(self, output: Any, op: str) -> Layer:
        name = self._name(output)
        node = output.get_node()
        known = [str(n) for n in output.get_names()] if output.get_names() else []
        before = []
        if op == _ROUNDS:
            source = node.input_value(0)
            before = [self._name(source), *map(str, source.get_names() or [])]
        names = tuple(dict.fromkeys((*before, *sorted(known), name)))
        return Layer(
            tensor=name,
            node=node.get_friendly_name(),
            op=op,
            module="",
            names=names,
            bits=8 if op == _ROUNDS else 0,
        )

    def _name(self, output: Any) -> str:
        node = output.get_node()
        stem = str(node.get_friendly_name())
        return stem if len(node.outputs()) == 1 else f"{stem}.{output.get_index()}"

    def _run(
        self, inputs: Mapping[str, Array], values: Mapping[str, Array], also: Iterable[str]
    ) -> dict[str, Array]:
        wanted = tuple(dict.fromkeys((*sorted(values), *also, *self.outputs)))
        request, cut = self._request(tuple(sorted(values)), wanted)
        feeds = [self._fed(p, inputs) for p in self._model.get_parameters()]
        results = request.infer([*feeds, *(np.asarray(values[n], np.float32) for n in cut)])
        arrays = [results[i] for i in range(len(wanted))]
        return {
            n: np.array(a, np.float32 if a.dtype.kind == "f" else a.dtype)
            for n, a in zip(wanted, arrays, strict=True)
        }

    def _fed(self, parameter: Any, inputs: Mapping[str, Array]) -> Array:
        names = {str(parameter.get_friendly_name()), *map(str, parameter.output(0).get_names() or [])}
        name = next((n for n in inputs if n in names), None)
        if name is None:
            raise BackendError(
                f"{self._path.name} wants an input {sorted(names)[0]!r}",
                hint="compare models with the same inputs",
            )
        return np.ascontiguousarray(inputs[name])

    def _request(self, cut: tuple[str, ...], wanted: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        key = (*cut, "|", *wanted)
        if key not in self._compiled:
            self._compiled.clear()
            model = self._cut(cut, wanted)
            settings = {"INFERENCE_PRECISION_HINT": self._precision, "INFERENCE_NUM_THREADS": "1"}
            self._compiled[key] = self._core.compile_model(model, "CPU", settings).create_infer_request()
        return self._compiled[key], cut

    def _cut(self, cut: tuple[str, ...], wanted: tuple[str, ...]) -> Any:
        opset = self._ov.opset13
        model = self._read()
        by_name = {self._name(o): o for op in model.get_ordered_ops() for o in op.outputs()}
        results = [opset.result(by_name[name]) for name in wanted]
        kept = {r.get_friendly_name() for r in results}
        parameters = list(model.get_parameters())
        for name in cut:
            source = by_name[name]
            parameter = opset.parameter(source.get_partial_shape(), source.get_element_type())
            for reader in source.get_target_inputs():
                if reader.get_node().get_friendly_name() not in kept:
                    reader.replace_source_output(parameter.output(0))
            parameters.append(parameter)
        return self._ov.Model(results, parameters, "edgekit-diff")
