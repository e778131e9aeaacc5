"""What quantization is asked for: one type, made from the user's options and the target's row."""

from __future__ import annotations

import subprocess
import sys

from edgekit.core import targets
from edgekit.core.config import Options
from edgekit.quantize.options import STANDARD, Cause, NodeReport, QuantizeOptions, QuantizeReport


def test_importing_them_loads_no_heavy_library() -> None:
    code = (
        "import sys, edgekit.quantize.options;"
        "print(*{'numpy', 'onnx', 'onnx_ir', 'onnxruntime', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_the_defaults_of_both_are_one() -> None:
    assert Options().corrections == STANDARD
    assert QuantizeOptions.of(Options(), targets.find("ort-int8")) == QuantizeOptions()


def test_settings_and_the_row_reach_the_quantizer() -> None:
    from dataclasses import replace

    options = Options(set={"block_size": 64}, exclude=("head",), method="mse")
    made = QuantizeOptions.of(options, targets.find("ort-int4-weights"))
    assert (made.block_size, made.exclude, made.method) == (64, ("head",), "mse")
    target = targets.find("ort-int8")
    assert target.scheme is not None
    seven = replace(target, scheme=replace(target.scheme, weight_bits=7))
    assert QuantizeOptions.of(Options(), seven).weight_bits == 7
    tflite = targets.find("tflite-int8")
    assert QuantizeOptions.of(Options(), tflite).float_outputs
    assert not QuantizeOptions.of(Options(set={"io_dtype": "int8"}), tflite).float_outputs


def node(
    name: str, macs: int, cause: Cause | None = None, reason: str = "", activation: str = ""
) -> NodeReport:
    return NodeReport(
        node=name,
        op="Conv",
        module_path="",
        quantized=cause is None,
        activation=activation,
        cause=cause,
        reason=reason,
        macs=macs,
    )


def test_only_what_was_asked_for_is_kept_out() -> None:
    nodes = (
        node("a", 50, activation="int8"),
        node("b", 20, Cause.EXCLUDED, "in any words"),
        node("c", 20, activation="int16"),
        node("d", 10, Cause.UNSUPPORTED, "excluded by the runtime"),
    )
    report = QuantizeReport(method="mse", corrections=(), nodes=nodes)
    assert report.kept_out("int8") == 0.4
    assert report.kept_out("int16") == 0.2
    assert QuantizeReport(method="mse", corrections=(), nodes=()).kept_out("int8") == 0.0
