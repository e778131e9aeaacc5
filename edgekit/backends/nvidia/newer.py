"""Operators that an older opset lacks, in those that it has: what the ONNX standard itself writes them in.

Most operators that came after opset 17 (GroupNormalization, Gelu, RMSNormalization, RotaryEmbedding, Attention, Swish)
are functions of the standard: their bodies take their place. What most others gained are types, which parsers read
whatever the opset says. Left is what computes something that an older opset cannot say; it is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from onnx import inliner
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants

from edgekit.backends.nvidia.cut import graphs
from edgekit.graph import io

_ROUNDS = 4
"""How deep functions are written in functions."""

_CHANGED = {"GroupNormalization"}
"""Functions that compute something else in a newer opset, though the older has one of the name."""

_OF_OPSET_17 = {"HardSwish"}
"""Functions that opset 17 has, and the parsers that read no newer one have not."""

_MOST = 1 << 20
"""Elements of what is computed ahead."""


def written_out(proto: onnx.ModelProto, opset: int, *also: str) -> onnx.ModelProto:
    """``proto`` with the functions that ``opset`` lacks, and those named ``also``, written out in their bodies."""
    for _ in range(_ROUNDS):
        names = _functions(proto, opset) | {n.op_type for n in _nodes(proto) if n.op_type in also}
        if not names:
            break
        owners = _owners(proto, names)
        _say_defaults(proto, names)
        chosen = [("", name) for name in sorted(names)]
        proto = inliner.inline_selected_functions(proto, chosen, inline_schema_functions=True)
        _named_after(proto, owners)
    return proto


def folded(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    """``proto`` with its shapes, and computed what bodies of functions make of those that are known: older parsers take
    constant axes and sizes only. ``folder``: where its large weights are."""
    model = _inferred(proto, folder)
    if any(_MARK in (node.name or "") for node in model.graph.all_nodes()):
        for _ in range(2):  # sizes that were computed tell shapes, and these others
            _fold(model)
            model = _inferred(ir.to_proto(model), folder)
    return model


def _inferred(proto: onnx.ModelProto, folder: Path) -> ir.Model:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    ir.external_data.set_base_dir(model.graph, folder.resolve())
    return model


def _fold(model: ir.Model) -> None:
    before = {node.name for node in model.graph.all_nodes()}
    fold_constants(
        model,
        input_size_limit=_MOST,
        output_size_limit=_MOST,
        should_fold=lambda node: None if _MARK in (node.name or "") else False,
    )
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    RemoveUnusedNodesPass()(model)
    fresh = [node for node in model.graph.all_nodes() if node.name not in before]
    for count, node in enumerate(
        reversed(fresh)
    ):  # what stands in the place of a node of a body is of that body
        readers = [use.node for output in node.outputs for use in output.uses()]
        around = [*readers, *(v.producer() for v in node.inputs if v is not None)]
        names = [n.name for n in around if n is not None and _MARK in (n.name or "")]
        if names:
            node.name = f"{owner(str(names[0]))}{_MARK}{node.op_type}_f{count}"


def lacking(node: ir.Node, own: int, opset: int) -> str:
    """Why opset ``opset`` cannot say what ``node`` of opset ``own`` does; what it does anyway is left out, in place."""
    if node.domain not in ("", "ai.onnx"):
        return ""
    before, now = _schema(node.op_type, opset), _schema(node.op_type, own)
    if now is None:
        return ""
    if before is None:
        return f"{node.op_type} is newer than the opset {opset} of this TensorRT"
    if before.since_version == now.since_version:
        return ""
    for name in [n for n in node.attributes if n not in before.attributes]:
        value = node.attributes[name].value
        if not (_is_default(value, now.attributes.get(name)) or _said_otherwise(node, name)):
            return f"opset {opset} has no {node.op_type} with {name}={value}"
        del node.attributes[name]
    reduction = node.attributes.get_string("reduction", "none")
    if opset < _EXTREMES and reduction in ("min", "max"):
        return f"opset {opset} has no {node.op_type} with reduction={reduction}"
    if any(v is not None for v in node.inputs[before.max_input :]):
        return f"opset {opset} has no {node.op_type} with {len(node.inputs)} inputs"
    return ""


_EXTREMES = 18
"""From which opset on scattering takes the least or the largest."""


def _is_default(value: object, attribute: onnx.defs.OpSchema.Attribute | None) -> bool:
    """Whether it is what is said where nothing is; dilations have no default, and are ones."""
    if attribute is None:
        return False
    if attribute.default_value.type == onnx.AttributeProto.UNDEFINED:
        return attribute.name == "dilations" and all(v == 1 for v in value)  # type: ignore[attr-defined]
    default = onnx.helper.get_attribute_value(attribute.default_value)
    return bool(value == (default.decode() if isinstance(default, bytes) else default))


def _said_otherwise(node: ir.Node, name: str) -> bool:
    """The type that a quantizer gives is its zero point's, too, and what a dequantizer gives its scale's."""
    if name != "output_dtype" or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return False
    place = 2 if node.op_type == "QuantizeLinear" else 1
    teller = node.inputs[place] if len(node.inputs) > place else None
    return teller is not None and teller.dtype == node.attributes[name].as_int()


def _say_defaults(proto: onnx.ModelProto, names: set[str]) -> None:
    """Attributes that are not written are as the standard says: a body reads them, and onnx's inliner leaves a hole."""
    own = _opset(proto)
    for node in _nodes(proto):
        schema = _schema(node.op_type, own) if node.op_type in names and node.domain == "" else None
        written = {a.name for a in node.attribute}
        for name, attribute in schema.attributes.items() if schema is not None else ():
            if name not in written and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                node.attribute.append(attribute.default_value)


def _opset(proto: onnx.ModelProto) -> int:
    return next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)


def _functions(proto: onnx.ModelProto, opset: int) -> set[str]:
    own = _opset(proto)
    return {n.op_type for n in _nodes(proto) if n.domain == "" and _is_newer(n.op_type, own, opset)}


def _is_newer(op: str, own: int, opset: int) -> bool:
    """Whether it is a function that ``opset`` lacks, or has another of."""
    before, now = _schema(op, opset), _schema(op, own)
    if now is None or not _has_body(now):
        return False
    if opset < 18 and op in _OF_OPSET_17:
        return True
    return before is None or (op in _CHANGED and before.since_version != now.since_version)


def _has_body(schema: Any) -> bool:
    """Whether it is a function; onnx's type hints lack both."""
    return bool(schema.has_function or schema.has_context_dependent_function)


def _schema(op: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op, opset, "")
    except onnx.defs.SchemaError:
        return None


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in graphs(proto.graph):
        yield from graph.node


# --- names ------------------------------------------------------------------------------------------

_MARK = "//"
"""Between the name of what was written out and that of a node of its body."""


def owner(name: str) -> str:
    """The node that a node of a body came from; ``name`` itself where it came from none."""
    return name.partition(_MARK)[0]


def bodies(onnx_file: Path, names: Collection[str]) -> tuple[str, ...]:
    """The nodes of the graph that are ``names``, or were written in the place of them."""
    wanted = set(names)
    nodes = _nodes(io.read_proto(onnx_file)) if wanted else ()
    return tuple(sorted({n.name for n in nodes if owner(n.name) in wanted}))


def _owners(proto: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """The names of nodes, by what they give."""
    return {o: n.name for n in _nodes(proto) if n.op_type in names for o in n.output if o}


def _named_after(proto: onnx.ModelProto, owners: dict[str, str]) -> None:
    """Nodes of bodies have no name: each gets that of the node that it came from, its operator and a number."""
    for graph in graphs(proto.graph):
        makers = {o: n for n in graph.node for o in n.output}
        for count, node in enumerate(graph.node):
            found = next((owners[o] for o in node.output if o in owners), None)
            left = [node] if found is not None else []
            while left:
                one = left.pop()
                if one is not node and one.name:
                    continue
                one.name = f"{found}{_MARK}{one.op_type}_{count}_{len(left)}"
                left += [makers[i] for i in one.input if i in makers]
        for count, node in enumerate(graph.node):  # what two of them share was named once
            if _MARK in node.name:
                node.name = f"{owner(node.name)}{_MARK}{node.op_type}_{count}"
