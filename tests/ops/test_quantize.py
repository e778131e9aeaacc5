"""Quantized graphs on the real runtimes: what they fuse, what stays float, and how near the result is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from quantize_support import (
    CALIBRATED,
    SCHEMES,
    WEIGHT_BITS,
    Items,
    attention,
    exported,
    operators,
    residual,
    snr,
    target,
)

from edgekit.errors import CalibrationRequiredError, UnknownNameError, UnsupportedError, UsageError
from edgekit.graph import io
from edgekit.quantize.calibrate.calibration import Calibration
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import METHODS, QuantizeOptions, QuantizeReport
from edgekit.types import OnnxModel

Network = tuple[OnnxModel, Items, Calibration]


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tmp_path_factory.mktemp("residual")
    model, items = residual(folder)
    return model, items, calibrate(model, items, out=folder / "calibration")


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Network:
    folder = tmp_path_factory.mktemp("attention")
    model, items = attention(folder)
    return model, items, calibrate(model, items, out=folder / "calibration")


def run(path: Path, items: Items, *, optimized: bool = True) -> np.ndarray:
    session = io.session(path, optimized=optimized)
    return np.concatenate([session.run(None, dict(s.inputs))[0] for s in items])


def kernels(path: Path, folder: Path) -> Counter[str]:
    """What ONNX Runtime makes of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(path), options)
    return operators(folder / "optimized.onnx")


def quantized(
    network: Network, name: str, folder: Path, options: QuantizeOptions | None = None, **changes: object
) -> tuple[OnnxModel, QuantizeReport]:
    return quantize(
        FloatModel(network[0], network[2]),
        target(name, **changes),
        options or QuantizeOptions(),
        folder / f"{name}.onnx",
    )


@pytest.mark.parametrize(("name", "least"), [(n, 40 if n == "tflite-int16" else 28) for n in CALIBRATED])
@pytest.mark.parametrize("which", ["vision", "language"])
def test_every_scheme_computes_almost_the_same(name, least, which, request, tmp_path) -> None:
    network: Network = request.getfixturevalue(which)
    model, report = quantized(network, name, tmp_path)
    onnx.checker.check_model(onnx.load(model.path), full_check=True)
    reference = run(network[0].path, network[1])
    assert snr(reference, run(model.path, network[1], optimized=False)) > least
    assert report.share == 1.0
    assert [o.name for o in model.outputs] == [o.name for o in network[0].outputs]
    assert model.inputs == network[0].inputs


@pytest.mark.parametrize("method", METHODS)
def test_every_method_serves(vision: Network, tmp_path: Path, method: str) -> None:
    model, report = quantized(
        vision, "ort", tmp_path, QuantizeOptions(method=method, weight_bits=WEIGHT_BITS)
    )
    assert report.method == method
    assert snr(run(vision[0].path, vision[1]), run(model.path, vision[1])) > 20


def test_onnxruntime_fuses_everything(vision: Network, tmp_path: Path) -> None:
    model, _ = quantized(vision, "ort", tmp_path, QuantizeOptions(weight_bits=WEIGHT_BITS))
    fused = kernels(model.path, tmp_path)
    float_convolutions = sum(n for op, n in fused.items() if op in ("Conv", "FusedConv", "Gemm", "FusedGemm"))
    assert fused["QLinearConv"] == operators(vision[0].path)["Conv"]
    assert float_convolutions == 0
    assert fused["QGemm"] == 1
    assert fused["QLinearAdd"] == 2
    assert fused["QLinearMul"] == fused["QLinearSigmoid"] == fused["QLinearConcat"] == 1
    assert fused["Relu"] == fused["Clip"] == 0
    assert (fused["QuantizeLinear"], fused["DequantizeLinear"]) == (
        1,
        0,
    )  # the graph input; QGemm writes float
    assert snr(run(vision[0].path, vision[1]), run(model.path, vision[1])) > 28


def test_onnxruntime_multiplies_integers_in_transformers(language: Network, tmp_path: Path) -> None:
    model, _ = quantized(language, "ort", tmp_path)
    fused = kernels(model.path, tmp_path)
    assert fused["MatMul"] == fused["Gemm"] == fused["FusedMatMul"] == fused["FusedGemm"] == 0
    assert sum(fused[op] for op in ("MatMulIntegerToFloat", "QLinearMatMul", "QGemm")) == 8


def test_openvino_runs_integers(vision: Network, language: Network, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    for network in (vision, language):
        model, _ = quantized(network, "openvino", tmp_path, QuantizeOptions(weight_bits=WEIGHT_BITS))
        compiled = openvino.Core().compile_model(str(model.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        kinds = Counter()
        for op in compiled.get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            if info["layerType"].value in ("Convolution", "FullyConnected", "MatMul"):
                kinds[info["runtimePrecision"].value] += 1
        assert set(kinds) <= {"u8", "i8"}, kinds
        got = np.concatenate([compiled(dict(s.inputs))[0] for s in network[1]])
        assert snr(run(network[0].path, network[1]), got) > 28


def test_tensorrt_builds(vision: Network, language: Network, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    for network in (vision, language):
        model, _ = quantized(network, "tensorrt", tmp_path)
        builder = trt.Builder(logger)
        net = builder.create_network(0)
        parser = trt.OnnxParser(net, logger)
        assert parser.parse_from_file(str(model.path)), [
            str(parser.get_error(i)) for i in range(parser.num_errors)
        ]
        config = builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        assert builder.build_serialized_network(net, config) is not None


def initializers(path: Path) -> dict[str, np.ndarray]:
    return {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("name", CALIBRATED)
def test_weights_and_biases_are_stored_as_the_scheme_says(vision: Network, tmp_path: Path, name: str) -> None:
    model, _ = quantized(vision, name, tmp_path)
    proto = onnx.load(model.path)
    arrays = initializers(model.path)
    producer = {o: n for n in proto.graph.node for o in n.output}
    convolutions = [n for n in proto.graph.node if n.op_type == "Conv"]
    assert convolutions
    for node in convolutions:
        data, weight, bias = (producer.get(i) for i in node.input)
        assert weight.op_type == "DequantizeLinear"
        values, scale, zero = (arrays[i] for i in weight.input)
        assert values.dtype == np.int8
        assert values.min() >= -127
        assert scale.shape == (values.shape[0],)
        assert not zero.any()
        if SCHEMES[name].bias == "float32":
            assert bias is None
            assert arrays[node.input[2]].dtype == np.float32
            continue
        assert bias.op_type == "DequantizeLinear"
        assert arrays[bias.input[0]].dtype == np.int32
        np.testing.assert_allclose(arrays[bias.input[1]], arrays[data.input[1]] * scale, rtol=1e-6)


def test_tflite_has_fixed_and_shared_scales(vision: Network, tmp_path: Path) -> None:
    model, report = quantized(vision, "tflite", tmp_path)
    assert not [n for n in report.floats if n.op not in ("Constant",)]
    proto, arrays = onnx.load(model.path), initializers(model.path)
    producer = {o: n for n in proto.graph.node for o in n.output}
    readers = {i: n for n in proto.graph.node for i in n.input}

    def parameters(node: onnx.NodeProto) -> tuple[float, int]:
        return float(arrays[node.input[1]]), int(arrays[node.input[2]])

    for node in proto.graph.node:
        if node.op_type == "Sigmoid":
            assert parameters(readers[node.output[0]]) == (1 / 256, -128)
        if node.op_type in ("Concat", "MaxPool", "Reshape", "Flatten"):
            scales = {parameters(producer[i]) for i in node.input if i in producer}
            assert scales == {parameters(readers[node.output[0]])}


def test_a_shared_activation_is_quantized_once(vision: Network, tmp_path: Path) -> None:
    for name in ("ort", "tflite"):
        model, _ = quantized(vision, name, tmp_path)
        read = [n.input[0] for n in onnx.load(model.path).graph.node if n.op_type == "QuantizeLinear"]
        assert len(read) == len(set(read))


def test_excluded_nodes_stay_float_and_say_so(vision: Network, tmp_path: Path) -> None:
    _, plain = quantized(vision, "ort", tmp_path)
    heaviest = max(plain.quantized, key=lambda n: n.macs)
    model, report = quantized(vision, "ort", tmp_path, QuantizeOptions(exclude=(heaviest.node, "Gemm")))
    stayed = {n.node: n.reason for n in report.floats}
    assert "excluded by" in stayed[heaviest.node]
    assert kernels(model.path, tmp_path)["QGemm"] == 0
    assert report.share < plain.share
    module = next(n.module_path for n in plain.quantized if n.module_path.startswith("stem"))
    _, by_module = quantized(vision, "ort", tmp_path, QuantizeOptions(exclude=(module.split(".")[0],)))
    assert any(n.module_path == module for n in by_module.floats)


def test_layers_may_have_int16_activations(vision: Network, tmp_path: Path) -> None:
    model, report = quantized(vision, "tflite", tmp_path, QuantizeOptions(int16=("Gemm",)))
    assert {n.activation for n in report.quantized if n.op == "Gemm"} == {"int16"}
    assert model.opset >= 21
    assert snr(run(vision[0].path, vision[1]), run(model.path, vision[1], optimized=False)) > 28


def test_what_cannot_be_meant_is_refused(vision: Network, tmp_path: Path) -> None:
    model, _, calibration = vision
    with pytest.raises(UnknownNameError, match="Gem"):
        quantize(
            FloatModel(model, calibration),
            target("ort"),
            QuantizeOptions(exclude=("Gem",)),
            tmp_path / "m.onnx",
        )
    with pytest.raises(CalibrationRequiredError, match="needs calibration"):
        quantize(FloatModel(model), target("ort"), QuantizeOptions(), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedError, match="int3"):
        quantize(
            FloatModel(model, calibration),
            target("ort", weight="int3"),
            QuantizeOptions(),
            tmp_path / "m.onnx",
        )
    with pytest.raises(UnknownNameError, match="rules"):
        quantize(
            FloatModel(model, calibration),
            target("ort", rules="onnx"),
            QuantizeOptions(),
            tmp_path / "m.onnx",
        )
    assert not (tmp_path / "m.onnx").exists()


def test_the_same_input_gives_the_same_bytes(vision: Network, tmp_path: Path) -> None:
    paths = [quantized(vision, "tflite", tmp_path / n)[0].path for n in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_reasons_name_the_mask(language: Network, tmp_path: Path) -> None:
    _, report = quantized(language, "tflite", tmp_path)
    assert any("mask" in n.reason for n in report.floats)


@pytest.mark.parametrize("name", ["tflite", "tflite-int16"])
def test_litert_computes_what_the_graph_says(vision: Network, tmp_path: Path, name: str) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from edgekit.backends.tflite.compiler import compile_onnx

    # A float head quantizes its input anew on every run, which no Q/DQ graph says.
    model, _ = quantized(vision, name, tmp_path, QuantizeOptions(float_outputs=False))
    compiled = compile_onnx(io.load(model.path))
    lite = interpreter.Interpreter(model_content=bytes(compiled.data))
    lite.allocate_tensors()
    operators = Counter(o["op_name"] for o in lite._get_ops_details())
    if name == "tflite":
        assert (operators["QUANTIZE"], operators["DEQUANTIZE"]) == (1, 1)
    runner = lite.get_signature_runner()
    got = np.concatenate([next(iter(runner(**s.inputs).values())).copy() for s in vision[1]])
    assert snr(run(model.path, vision[1], optimized=False), got) > 60


def test_large_tables_are_stored_as_integers(tmp_path: Path) -> None:
    import torch
    from quantize_support import exported

    class Bag(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = torch.nn.Embedding(4096, 32), torch.nn.Linear(32, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids).mean(1))

    torch.manual_seed(0)
    ids = torch.randint(0, 4096, (16, 1, 6))
    items = Items([{"ids": i.numpy()} for i in ids])
    model = exported(Bag(), {"ids": ids[0]}, tmp_path)
    calibration = calibrate(model, items, out=tmp_path / "c")
    reference = run(model.path, items)
    for name in ("ort", "openvino", "tflite"):
        small, report = quantize(
            FloatModel(model, calibration), target(name), QuantizeOptions(), tmp_path / f"{name}.onnx"
        )
        assert small.path.stat().st_size < model.path.stat().st_size / 3
        assert "INT8 with a scale a row" in report.notes[0]
        assert snr(reference, run(small.path, items, optimized=False)) > 35


@pytest.mark.parametrize(
    ("name", "least", "share"),
    [
        ("dynamic", 30, 1.0),
        ("int8-weights", 35, 1.0),
        ("int4-weights", 15, 1.0),
        ("float16-weights", 60, 1.0),
    ],
)
def test_schemes_without_calibration(
    language: Network, tmp_path: Path, name: str, least: float, share: float
) -> None:
    options = QuantizeOptions(weight_bits=WEIGHT_BITS)
    model, report = quantize(FloatModel(language[0]), target(name), options, tmp_path / "m.onnx")
    onnx.checker.check_model(onnx.load(model.path), full_check=True)
    reference = run(language[0].path, language[1])
    assert snr(reference, run(model.path, language[1])) > least
    weights = [n for n in report.nodes if n.op == "Gemm"]
    assert all(n.quantized for n in weights)
    assert len(weights) == 6
    fused = kernels(model.path, tmp_path)
    if name == "dynamic":
        assert fused["Gemm"] == fused["FusedGemm"] == 0
        assert sum(fused[op] for op in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")) == 6
        assert fused["DynamicQuantizeLinear"] <= 4  # query, key and value share theirs
    if name == "int4-weights":
        assert fused["MatMulNBits"] == 6


def test_weight_only_convolutions_on_openvino(vision: Network, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    for name, least in (("int8-weights", 35), ("int4-weights", 25)):
        model, report = quantize(FloatModel(vision[0]), target(name), QuantizeOptions(), tmp_path / "m.onnx")
        assert model.path.stat().st_size < vision[0].path.stat().st_size
        compiled = openvino.Core().compile_model(str(model.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        got = np.concatenate([compiled(dict(s.inputs))[0] for s in vision[1]])
        assert snr(run(vision[0].path, vision[1]), got) > least
        assert any("INT8" in n for n in report.notes) == (name == "int4-weights")


def test_every_correction_keeps_the_function_and_auto_does_not_lose(vision: Network, tmp_path: Path) -> None:
    model, items, calibration = vision
    reference = run(model.path, items)
    figures = {}
    for corrections in ((), ("bias",), ("equalize",), ("smooth",), ("rounding",), ("auto",)):
        options = QuantizeOptions(method="mse", corrections=corrections, weight_bits=WEIGHT_BITS)
        floats = FloatModel(model, calibration, items)
        made, report = quantize(floats, target("ort"), options, tmp_path / "m.onnx")
        figures[corrections] = snr(reference, run(made.path, items))
        assert figures[corrections] > 25
    assert any("kept" in n or "left out" in n for n in report.notes)
    assert figures["auto",] >= figures[()] - 0.2


def test_equalizing_leaves_the_float_model_as_it_was(
    vision: Network, language: Network, tmp_path: Path
) -> None:
    from edgekit.quantize.equalize import equalize

    for network in (vision, language):
        model = io.load(network[0].path)
        equalize(model.graph, network[2])
        saved = io.save(model, tmp_path / "m.onnx")
        assert snr(run(network[0].path, network[1]), run(saved.path, network[1])) > 90


def test_corrections_that_run_the_model_need_samples(vision: Network, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="equalize"):
        quantized(vision, "ort", tmp_path, QuantizeOptions(corrections=("equalize",)))


def test_bias_correction_takes_the_mean_error_back(vision: Network, tmp_path: Path) -> None:
    """With 4-bit-like coarse weights the means shift; corrected biases bring them back."""
    model, items, _ = vision
    reference = run(model.path, items)
    errors = {}
    for corrections in ((), ("bias",)):
        options = QuantizeOptions(method="minmax", corrections=corrections)
        made, _ = quantized(vision, "tflite-int16", tmp_path, options)  # activations are near exact
        errors[corrections] = np.abs((run(made.path, items, optimized=False) - reference).mean(0)).mean()
    assert errors["bias",] < errors[()] * 0.8


def test_compensated_rounding_beats_rounding_to_nearest() -> None:
    from edgekit.quantize.params import quantize_weight, weight_scale
    from edgekit.quantize.rounding import compensated

    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 400)).astype(np.float32)
    x[1:] += 0.9 * x[:-1]  # correlated inputs, as real ones are
    weight = rng.standard_normal((8, 24)).astype(np.float32)
    scale = weight_scale(weight, 0, 4)
    nearest = quantize_weight(weight, 0, 4).values * scale[:, None]
    better = compensated(weight, (x @ x.T).astype(np.float64), scale[:, None], (-7, 7)) * scale[:, None]
    error = [np.square((w - weight) @ x).sum() for w in (nearest, better)]
    assert error[1] < 0.7 * error[0]


def test_sensitivity_names_the_layer_that_was_made_hard(tmp_path: Path) -> None:
    from edgekit.quantize.sensitivity import sensitivity

    model, items = residual(tmp_path)
    ir_model = io.load(model.path)
    blocks = [n for n in ir_model.graph if n.op_type == "Conv"]
    victim = blocks[5]
    weight = victim.inputs[1]
    array = weight.const_value.numpy().copy()
    array[:, 0] *= 300.0  # one input channel takes the whole range of every output's scale
    weight.const_value = ir.tensor(array, name=weight.name)
    hard = io.save(ir_model, tmp_path / "hard.onnx")
    calibration = calibrate(hard, items, out=tmp_path / "c")
    floats = FloatModel(hard, calibration, items)
    steps: list[tuple[int, int]] = []
    options = QuantizeOptions(corrections=())
    ranking = sensitivity(floats, target("ort"), options, tmp_path, progress=lambda *a: steps.append(a))
    assert victim.name in [s.node for s in ranking[:3]]
    assert steps[-1] == (len(ranking), len(ranking))
    assert len(ranking) == 9


class Pooled(torch.nn.Module):
    """Scores are the average of a convolution's places, as in SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(3, 12, 3, padding=1), torch.nn.Conv2d(12, 9, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.stem(x))).mean((2, 3), keepdim=True).flatten(1)


def with_images(module: torch.nn.Module, folder: Path) -> Network:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    images = torch.randn(16, 3, 16, 16)
    model = exported(module, {"x" if isinstance(module, Pooled) else "input": images[:1]}, folder)
    items = Items([{model.inputs[0].name: i[None].numpy()} for i in images])
    return model, items, calibrate(model, items, out=folder / "calibration")


def test_an_average_that_ends_the_model_is_not_cut_to_eight_bits(tmp_path: Path) -> None:
    network = with_images(Pooled(), tmp_path)
    fine, report = quantized(network, "tflite", tmp_path)
    (tmp_path / "cut").mkdir()
    coarse, plain = quantized(network, "tflite", tmp_path / "cut", QuantizeOptions(float_outputs=False))
    assert {n.op for n in report.floats} == {"ReduceMean", "Reshape"}
    assert not plain.floats
    assert report.share == plain.share == 1.0
    want = run(network[0].path, network[1])
    results = [run(made.path, network[1], optimized=False) for made in (fine, coarse)]
    assert snr(want, results[0]) > snr(want, results[1]) + 1
    assert len(np.unique(results[0])) > len(np.unique(results[1]))


def test_an_average_that_something_reads_stays_integers(tmp_path: Path) -> None:
    layers = [
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 4),
    ]
    _, report = quantized(with_images(torch.nn.Sequential(*layers), tmp_path), "tflite", tmp_path)
    assert not report.floats
