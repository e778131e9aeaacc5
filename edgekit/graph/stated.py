"""What the tensors of an ONNX file say of themselves, compared with the values that are there.

Readers believe it: they reshape, allocate and divide by it, each at another place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
import onnx_ir as ir

from edgekit.errors import SourceError

_MOST = 1 << 40
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def check_tensors(tensors: Iterable[onnx.TensorProto], where: str) -> None:
    """Raise :class:`SourceError` for a tensor of no type, of negative sizes, or of other sizes than its values."""
    for tensor in tensors:
        problem = _problem(tensor)
        if problem:
            raise SourceError(f"{where}: the tensor {tensor.name!r} {problem}", hint="export it again")


def _problem(tensor: onnx.TensorProto) -> str:
    count = math.prod(tensor.dims)
    if any(d < 0 for d in tensor.dims) or count > _MOST:
        return f"has the shape {list(tensor.dims)}"
    if tensor.data_type == onnx.TensorProto.STRING:
        return "" if len(tensor.string_data) == count else f"states {count} texts and has others"
    bits = _bits(tensor.data_type)
    if not bits:
        return f"has values of type {tensor.data_type}, and there is no such type"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return ""
    if tensor.HasField("raw_data"):
        given = len(tensor.raw_data)
        return "" if given == stated_bytes(tensor) else f"states {count} values and has {given} bytes"
    given = _listed(tensor)
    packed = stated_bytes(tensor) if bits < 8 else count * (2 if tensor.data_type in _COMPLEX else 1)
    return "" if given in (packed, count) else f"states {count} values and has {given}"


def stated_bytes(tensor: onnx.TensorProto) -> int:
    """How many bytes its values take by its type and shape."""
    count: int = math.prod(tensor.dims)
    return -(-count * _bits(tensor.data_type) // 8)


def _bits(data_type: int) -> int:
    """Of one value; 0 for a type that does not exist."""
    try:
        return int(ir.DataType(data_type).bitwidth)
    except (ValueError, TypeError):
        return 0


def _listed(tensor: onnx.TensorProto) -> int:
    lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    return max(map(len, lists))
