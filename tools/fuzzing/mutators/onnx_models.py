"""ONNX models, field by field: what the wire format can say and no exporter would."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fuzzing import values
from fuzzing.mutators import raw

_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_FLOATS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_OPERATORS = (
    "Conv", "MatMul", "Gemm", "Reshape", "Concat", "Split", "Slice", "Gather", "If", "Loop", "Scan",
    "Resize", "Pad", "Tile",
    "Expand", "Einsum", "LSTM", "QLinearConv", "QuantizeLinear", "DequantizeLinear", "Range", "ConstantOfShape", "TopK",
    "NonZero", "Cast", "Transpose", "Squeeze", "Constant", "MaxPool", "SequenceAt", "RandomNormal",
    "StringNormalizer", "Nope", "",
)  # fmt: skip


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to four changes of a model that parses; sometimes of its bytes."""
    if rng.random() < 0.15:
        return raw.mutate(rng, data)
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(rng, model) if rng.random() < 0.75 else _hostile(rng, model)
    return model.SerializeToString()


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _change(rng: random.Random, model: onnx.ModelProto) -> None:
    """Any field of any message."""
    everything = list(_messages(model))
    message = rng.choice(everything)
    field = rng.choice(message.DESCRIPTOR.fields)
    try:
        if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            _change_message(rng, message, field, everything)
        elif field.is_repeated:
            _change_list(rng, getattr(message, field.name), field)
        elif rng.random() < 0.15:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, _value(rng, field, getattr(message, field.name)))
    except (ValueError, TypeError, OverflowError):  # what this field cannot hold
        return


def _change_message(
    rng: random.Random, message: Message, field: FieldDescriptor, everything: list[Message]
) -> None:
    same = [m for m in everything if m.DESCRIPTOR is field.message_type and m.ByteSize() < 20_000]
    there: Any = getattr(message, field.name)
    # A copy of its own: a message must not be copied into one that it is part of.
    chosen = type(same[0]).FromString(rng.choice(same).SerializePartialToString()) if same else None
    if field.is_repeated:
        if there and rng.random() < 0.4:
            del there[rng.randrange(len(there))]
        elif chosen is not None and rng.random() < 0.7:
            there.add().CopyFrom(chosen)
        else:
            there.add()
    elif chosen is not None and rng.random() < 0.6:
        there.CopyFrom(chosen)
    else:
        message.ClearField(field.name)


def _change_list(rng: random.Random, items: Any, field: FieldDescriptor) -> None:
    match rng.randrange(4):
        case 0 if items:
            del items[rng.randrange(len(items))]
        case 1 if items:
            items.extend([items[rng.randrange(len(items))]] * rng.choice((1, 2, 100)))
        case 2 if items:
            at = rng.randrange(len(items))
            items[at] = _value(rng, field, items[at])
        case _:
            items.append(_value(rng, field, field.default_value or _empty(field)))


def _empty(field: FieldDescriptor) -> object:
    return {FieldDescriptor.CPPTYPE_STRING: ""}.get(field.cpp_type, 0)


def _value(rng: random.Random, field: FieldDescriptor, value: Any) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return raw.mutate(rng, value or b"\0\0\0\0", most=1) if isinstance(value, bytes) else b"x"
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if field.name == "op_type":
            return rng.choice(_OPERATORS)
        text = values.text(rng)
        return text.encode("utf-8", "replace").decode()
    if field.cpp_type in _FLOATS:
        return rng.choice(values.FLOATS)
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return rng.randrange(30)
    if field.cpp_type in _INTEGERS:
        return int(rng.choice((value + 1, value - 1, -value, rng.randrange(30), values.number(rng))))
    return value


# --- what a schema does not show ------------------------------------------------------------------------


def _hostile(rng: random.Random, model: onnx.ModelProto) -> None:
    rng.choice((_dimension, _weights, _external, _wires, _nested, _metadata, _types))(rng, model)


def _dimension(rng: random.Random, model: onnx.ModelProto) -> None:
    infos = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [d for i in infos for d in i.type.tensor_type.shape.dim]
    if dims:
        dim = rng.choice(dims)
        if rng.random() < 0.7:
            dim.dim_value = rng.choice((0, -1, -7, 1, 2**31, 2**62, 2**63 - 1, -(2**63)))
        else:
            dim.dim_param = rng.choice(("", "a b", "N-1", "-1", "?", "batch", "x" * 3000))


def _weights(rng: random.Random, model: onnx.ModelProto) -> None:
    """Dimensions and types that the bytes are not."""
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    if rng.random() < 0.5 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, -1, 1, 2**31, 2**40, 2**62))
    else:
        tensor.data_type = rng.randrange(30)


def _external(rng: random.Random, model: onnx.ModelProto) -> None:
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    location = rng.choice((*values.paths(), "model.onnx", ".", ""))
    pairs = {
        "location": location,
        "offset": rng.choice(("0", "-1", "9" * 30, "x", "4096")),
        "length": rng.choice(("4", "-4", "9" * 20)),
    }
    for key, value in pairs.items():
        if rng.random() < 0.8:
            tensor.external_data.add(key=key, value=value)


def _wires(rng: random.Random, model: onnx.ModelProto) -> None:
    """Loops, names twice, inputs from nowhere."""
    names = [n for node in model.graph.node for n in (*node.input, *node.output)] or ["x"]
    if model.graph.node:
        node = rng.choice(model.graph.node)
        side = rng.choice((node.input, node.output))
        if side:
            side[rng.randrange(len(side))] = rng.choice((*names, "", "nowhere"))


def _nested(rng: random.Random, model: onnx.ModelProto) -> None:
    graph = onnx.GraphProto(name="g")
    for _ in range(rng.choice((1, 5, 40, 120))):
        outer = onnx.GraphProto(name="g")
        node = outer.node.add(op_type="If", name="if", input=["x"], output=["y"])
        for branch in ("then_branch", "else_branch")[: rng.randint(1, 2)]:
            attribute = node.attribute.add(name=branch, type=onnx.AttributeProto.GRAPH)
            if branch == "then_branch":
                attribute.g.CopyFrom(graph)
        graph = outer
    model.graph.node.add().CopyFrom(graph.node[0])


def _metadata(rng: random.Random, model: onnx.ModelProto) -> None:
    key = rng.choice(("edgekit.layout", "pkg.torch.onnx.name_scopes", "x"))
    value = rng.choice(
        ("NHWC", "NCHWNCHW", "[" * 5000, "['a', 'b', 'c']", "[1, 2]", "\0", "x" * 9000, "[-1]*9**9")
    )
    holders = [model, *model.graph.node, *model.graph.input, *model.graph.output]
    rng.choice(holders).metadata_props.add(key=key, value=value)


def _types(rng: random.Random, model: onnx.ModelProto) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output])
    match rng.randrange(5):
        case 0:
            value.type.tensor_type.elem_type = rng.randrange(30)
        case 1:
            value.type.sequence_type.elem_type.tensor_type.elem_type = 1
        case 2:
            value.type.map_type.key_type = 8
        case 3:
            value.type.tensor_type.ClearField("shape")
        case _:
            value.ClearField("type")
