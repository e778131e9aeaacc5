"""Reads a graph by the rules of one release's parser, and runs it. A stand-in, see README.md."""

import json

import generations


class Refused(Exception):
    """The parser stops: at a node, or at the whole graph."""

    def __init__(self, node, op, message):
        super().__init__(message)
        self.node, self.op, self.message = node, op, message


def newest_opset(version):
    """The operator tables of onnx-tensorrt's releases."""
    known = (((10, 15), 24), ((10, 0), 20), ((9, 0), 19), ((8, 0), 17))
    return next(opset for since, opset in known if generations.release(version) >= since)


def parse(path, device):
    """The graph, or :class:`Refused`."""
    import onnx

    model = onnx.load(path)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    version = device["version"]
    if opset > newest_opset(version):
        raise Refused("", "", "opset %d is newer than %d" % (opset, newest_opset(version)))
    constants = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in device.get("refuses", ()) or node.domain not in ("", "ai.onnx"):
            message = 'Assertion failed: creator && "Plugin not found, are name and version correct?"'
            raise Refused(node.name, node.op_type, message)
        stored = constants.get(node.input[0]) if node.input else None
        if node.op_type == "DequantizeLinear" and stored is not None:
            if stored.data_type == onnx.TensorProto.INT32:
                raise Refused(
                    node.name, node.op_type, "Assertion failed: INT32 is not a type that is dequantized"
                )
            if stored.data_type == onnx.TensorProto.INT8 and generations.release(version) < (10, 0):
                raise Refused(
                    node.name, node.op_type, "Assertion failed: INT8 is not supported for constant layers"
                )
        if node.op_type in ("LayerNormalization", "GroupNormalization") and generations.release(version) < (
            8,
            6,
        ):
            raise Refused(node.name, node.op_type, 'Assertion failed: creator && "Plugin not found"')
    return model


def engine_of(path, flags, device):
    """An engine: which device and release it is for, how it was built, and the graph."""
    with open(path, "rb") as file:
        graph = file.read()
    head = {k: device[k] for k in ("version", "gpu", "cc")}
    head["flags"] = flags
    return b"standin\0" + json.dumps(head, sort_keys=True).encode() + b"\0" + graph


def opened(data, device):
    """The graph of an engine; ``None`` for one of another device, as the runtime gives it."""
    if not data.startswith(b"standin\0"):
        return None
    head, _, graph = data[8:].partition(b"\0")
    found = json.loads(head)
    return graph if all(found[k] == device[k] for k in ("version", "gpu", "cc")) else None


def layers_of(graph, weak):
    """The inspector's layers: of each node with arithmetic, whether integers come in."""
    import onnx

    model = onnx.load_from_string(graph)
    quantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    spelled = {t.name: "Half" for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}
    rows = []
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Constant"):
            continue
        typed = next((spelled[name] for name in node.input if name in spelled), "Float")
        rest = "Half" if "fp16" in weak else typed
        kind = "Int8" if node.input and node.input[0] in quantized else rest
        tensor = {
            "Name": node.input[0] if node.input else "",
            "Dimensions": [],
            "Format/Datatype": kind + " NC/32HW32",
        }
        rows.append(
            {
                "Name": node.name,
                "LayerType": "CaskConvolution" if node.op_type == "Conv" else node.op_type,
                "Inputs": [tensor],
                "Outputs": [tensor],
                "TacticName": "standin_" + node.op_type.lower(),
                "Metadata": "[ONNX Layer: %s]" % node.name,
            }
        )
    return rows
