"""Measures the TFLite compiler: time against size of the graph, and peak memory against size of the weights.

    python tools/bench_tflite_compiler.py                   # chains of 500 … 5,000 nodes; a model of 500 MB
    python tools/bench_tflite_compiler.py MODEL.onnx …      # these models: in memory → bytes, best of five
    python tools/bench_tflite_compiler.py --megabytes 1000

Peak memory is VmHWM of a fresh process, less what the imports take, over the size of the weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_DEPTHS = (500, 1000, 2000, 5000)
_WIDTH = 2048


def chain(nodes: int, channels: int = 16):
    """A residual CNN of about ``nodes`` ONNX nodes, in memory."""
    import onnx_ir as ir
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    made, initial, last = [], [], "x"
    for i in range(nodes // 4):
        data = (rng.standard_normal((channels, channels, 3, 3)) * 0.05).astype(np.float32)
        initial += [
            numpy_helper.from_array(data, f"w{i}"),
            numpy_helper.from_array(data[0, :, 0, 0].copy(), f"b{i}"),
        ]
        made += [
            helper.make_node("Conv", [last, f"w{i}", f"b{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"),
            helper.make_node("Sigmoid", [f"r{i}"], [f"s{i}"], name=f"sigmoid{i}"),
            helper.make_node("Mul", [f"s{i}", f"r{i}"], [f"m{i}"], name=f"mul{i}"),
        ]
        last = f"m{i}"
    shape = [1, channels, 16, 16]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(made, "chain", inputs, outputs, initial)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def linear_stack(megabytes: int):
    """A stack of linear layers with ``megabytes`` of float32 weights, in memory."""
    import onnx_ir as ir

    layers = max(1, megabytes * 2**20 // (_WIDTH * _WIDTH * 4))
    x = ir.val("x", ir.DataType.FLOAT, (1, _WIDTH))
    nodes, initial, last = [], [], x
    rng = np.random.default_rng(0)
    for i in range(layers):
        data = rng.standard_normal((_WIDTH, _WIDTH), np.float32)
        weight = ir.val(f"w{i}", const_value=ir.tensor(data, name=f"w{i}"))
        node = ir.node("MatMul", [last, weight], name=f"matmul{i}")
        node.outputs[0].name = f"y{i}"
        initial.append(weight)
        nodes.append(node)
        last = node.outputs[0]
    last.type, last.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((1, _WIDTH))
    graph = ir.Graph([x], [last], nodes=nodes, initializers=initial, opset_imports={"": 21}, name="stack")
    return ir.Model(graph, ir_version=10), layers * _WIDTH * _WIDTH * 4


def best(model, repeats: int) -> tuple[float, int]:
    """Seconds of the quickest compilation, and the file's size."""
    from edgekit.backends.tflite.compiler import compile_onnx

    times, size = [], 0
    for _ in range(repeats):
        start = time.perf_counter()
        size = len(compile_onnx(model).data)
        times.append(time.perf_counter() - start)
    return min(times), size


def resident(field: str) -> int:
    """VmHWM or VmRSS of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory(megabytes: int) -> None:
    """To be run in a fresh process: prints peak memory over the weights' size."""
    from edgekit.backends.tflite.compiler import compile_onnx

    before = resident("VmRSS")
    model, weights = linear_stack(megabytes)
    loaded = resident("VmRSS")
    compiled = compile_onnx(model)
    peak = resident("VmHWM")
    print(
        f"weights {weights / 2**20:.0f} MB, file {len(compiled.data) / 2**20:.0f} MB: "
        f"model in memory {(loaded - before) / weights:.2f}x, peak while compiling {(peak - before) / weights:.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--memory", action="store_true", help="only the memory measurement, in this process")
    options = parser.parse_args()
    if options.memory:
        memory(options.megabytes)
        return
    if options.models:
        import onnx_ir as ir

        for path in options.models:
            seconds, size = best(ir.load(path), 5)
            print(f"{path.name}: {seconds * 1e3:.0f} ms, {size} bytes")
        return
    for depth in _DEPTHS:
        seconds, _ = best(chain(depth), 3)
        print(f"{depth} nodes: {seconds * 1e3:.0f} ms, {seconds / depth * 1e6:.0f} us a node")
    subprocess.run([sys.executable, __file__, "--memory", "--megabytes", str(options.megabytes)], check=True)


if __name__ == "__main__":
    main()
