"""Seeded models, and ways to spoil one layer of theirs in PyTorch's export, in Q/DQ ONNX and in .tflite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from edgekit.core import targets
from edgekit.graph import passes
from edgekit.graph.export import export
from edgekit.load.samples import from_iterable
from edgekit.quantize.calibrate.collect import calibrate
from edgekit.quantize.driver import quantize
from edgekit.quantize.float_model import FloatModel
from edgekit.quantize.options import QuantizeOptions
from edgekit.types import OnnxModel, TorchModel

COUNT = 4


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(Residual(12), Residual(12), Residual(12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


def depthwise() -> nn.Module:
    def unit(into: int, out: int, stride: int) -> list[nn.Module]:
        return [
            nn.Conv2d(into, into, 3, stride=stride, padding=1, groups=into, bias=False),
            nn.BatchNorm2d(into),
            nn.ReLU6(),
            nn.Conv2d(into, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(),
        ]

    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    return nn.Sequential(
        *stem, *unit(16, 24, 2), *unit(24, 24, 1), *unit(24, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (
            part(y).reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        scores = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1)
        x = x + self.out((scores @ v).transpose(1, 2).reshape(x.shape))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.layers = nn.Sequential(Attention(32, 4), Attention(32, 4))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.layers(self.embed(x))).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 32), nn.Tanh(),
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5),
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (ResidualNet, (1, 3, 24, 24)),
    "depthwise": (depthwise, (1, 3, 24, 24)),
    "transformer": (Transformer, (1, 9, 12)),
    "mlp": (mlp, (3, 20)),
}


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    module = make()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.3, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    return module.eval()


@dataclass(frozen=True, kw_only=True)
class Built:
    """One model in all its forms."""

    name: str
    torch: TorchModel
    exported: OnnxModel
    optimized: OnnxModel
    quantized: OnnxModel
    tflite_quantized: OnnxModel
    tflite: Path
    inputs: list[dict[str, np.ndarray]]


def built(name: str, folder: Path, seed: int = 0) -> Built:
    make, shape = MODELS[name]
    generator = np.random.default_rng(seed + 1)
    module = seeded(make, seed)
    entry = "input" if isinstance(module, nn.Sequential) else "x"
    inputs = [{entry: generator.standard_normal(shape).astype(np.float32)} for _ in range(24)]
    model = TorchModel(module=module, example_inputs={entry: torch.from_numpy(inputs[0][entry])})
    exported = export(model, folder / "exported.onnx")
    optimized = passes.optimize_with_report(exported, folder / "optimized.onnx", example=inputs[0])[0]
    samples = from_iterable(inputs, optimized.inputs, name="inputs")
    calibration = calibrate(optimized, samples, out=folder / "calibration")
    rows = targets.known()
    options = QuantizeOptions(method="minmax")
    made = {}
    for target in ("ort-int8", "tflite-int8"):
        made[target], _ = quantize(
            FloatModel(optimized, calibration, samples), rows[target], options, folder / f"{target}.onnx"
        )
    return Built(
        name=name,
        torch=model,
        exported=exported,
        optimized=optimized,
        quantized=made["ort-int8"],
        tflite_quantized=made["tflite-int8"],
        tflite=lowered(made["tflite-int8"], folder),
        inputs=inputs[:COUNT],
    )


def lowered(model: OnnxModel, folder: Path) -> Path:
    from edgekit.backends import tflite

    out = folder / "tflite"
    out.mkdir(exist_ok=True)
    result = tflite.lower(model, targets.known()["tflite-int8"], {}, out)
    return out / result.files[0]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What was spoiled: the module, and how."""

    module: str
    kind: str


def _strength(generator: np.random.Generator) -> float:
    return float(generator.uniform(0.3, 0.8))


def spoil(weights: np.ndarray, axis: int, kind: str, generator: np.random.Generator) -> np.ndarray:
    """Float weights with one fault; ``axis`` is that of the output channels."""
    spoiled = weights.astype(np.float64)
    if kind == "scaled":
        spoiled *= 1 + _strength(generator) * generator.choice([-1, 1])
    elif kind == "flipped":
        spoiled *= -1
    elif kind == "channel":
        index = [slice(None)] * weights.ndim
        index[axis] = int(generator.integers(weights.shape[axis]))
        spoiled[tuple(index)] = 0
    elif kind == "noise":
        spoiled += generator.standard_normal(weights.shape) * weights.std() * _strength(generator)
    return spoiled


KINDS = ("scaled", "flipped", "channel", "noise")


def owner(name: str, weights: np.ndarray, module: nn.Module) -> str:
    """The module that a matrix came from: by its name, else by its values, whatever its scale and order."""
    stem = name.split(".weight")[0]
    if stem != name and stem in dict(module.named_modules()):
        return stem
    best, score = "", 0.0
    for path, part in module.named_modules():
        if isinstance(part, nn.Linear) and part.weight.numel() == weights.size:
            theirs = part.weight.detach().numpy()
            for one in (theirs, theirs.T):
                if one.shape == weights.shape:
                    figure = float(np.corrcoef(one.ravel(), weights.astype(np.float64).ravel())[0, 1])
                    best, score = (path, figure) if figure > score else (best, score)
    assert score > 0.9, f"{name} is like no module's weights"
    return best


def spoil_onnx(path: Path, out: Path, generator: np.random.Generator, module: nn.Module) -> Fault:
    """A float graph with one weight or bias spoiled."""
    proto = onnx.load(str(path))
    stored = {i.name: i for i in proto.graph.initializer}
    cores = [n for n in proto.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] in stored]
    node = cores[int(generator.integers(len(cores)))]
    kind = str(generator.choice([*KINDS, "bias"]))
    place = owner(node.input[1], numpy_helper.to_array(stored[node.input[1]]), module)
    has_bias = len(node.input) > 2 and node.input[2] in stored
    if kind == "bias" and not has_bias:
        kind = "scaled"
    target = stored[node.input[2 if kind == "bias" else 1]]
    array = numpy_helper.to_array(target)
    if kind == "bias":
        changed = array + generator.standard_normal(array.shape) * (array.std() + 0.1)
    else:
        changed = spoil(array, 0 if node.op_type != "MatMul" else -1, kind, generator)
    target.CopyFrom(numpy_helper.from_array(changed.astype(array.dtype), target.name))
    onnx.save(proto, str(out))
    return Fault(module=place, kind=kind)


def spoil_quantized(path: Path, out: Path, generator: np.random.Generator, module: nn.Module) -> Fault:
    """A Q/DQ graph with one layer's integers, weight scale, activation scale or zero point spoiled."""
    proto = onnx.load(str(path))
    stored = {i.name: i for i in proto.graph.initializer}
    made = {o: n for n in proto.graph.node for o in n.output}
    cores = []
    for n in proto.graph.node:
        dq = made.get(n.input[1]) if len(n.input) > 1 else None
        if dq is not None and dq.op_type == "DequantizeLinear" and dq.input[0] in stored:
            cores.append((n, dq))
    node, weight = cores[int(generator.integers(len(cores)))]
    kind = str(generator.choice([*KINDS, "weight-scale", "activation-scale", "zero-point"]))
    place = owner(weight.input[0], numpy_helper.to_array(stored[weight.input[0]]), module)
    if kind in ("activation-scale", "zero-point"):
        pair = _quantizer_behind(proto, node)
        if pair is None:
            kind = "weight-scale"
        else:
            _spoil_pair(proto, pair, kind, generator)
    if kind == "weight-scale":
        target = stored[weight.input[1]]
        array = numpy_helper.to_array(target)
        factor = 1 + _strength(generator) * generator.choice([-1, 1])
        _replace(proto, weight, 1, (array * factor).astype(array.dtype))
    elif kind in KINDS:
        array = numpy_helper.to_array(stored[weight.input[0]])
        axis = 0 if node.op_type != "MatMul" else -1
        changed = np.clip(np.rint(spoil(array, axis, kind, generator)), -127, 127).astype(array.dtype)
        _replace(proto, weight, 0, changed)
    onnx.save(proto, str(out))
    return Fault(module=place, kind=kind)


def _quantizer_behind(proto: onnx.ModelProto, node: onnx.NodeProto) -> tuple[onnx.NodeProto, ...] | None:
    """Q and its DQs behind ``node`` (or behind its bias Add and activation)."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for n in proto.graph.node:
        for name in n.input:
            readers.setdefault(name, []).append(n)
    name = node.output[0]
    for _ in range(3):
        behind = readers.get(name, [])
        if len(behind) != 1:
            return None
        if behind[0].op_type == "QuantizeLinear":
            return (behind[0], *readers.get(behind[0].output[0], []))
        stored = {i.name for i in proto.graph.initializer}
        biased = behind[0].op_type == "Add" and any(i in stored for i in behind[0].input)
        if not biased and behind[0].op_type not in ("Relu", "Clip"):
            return None
        name = behind[0].output[0]
    return None


def _spoil_pair(
    proto: onnx.ModelProto, pair: tuple[onnx.NodeProto, ...], kind: str, generator: np.random.Generator
) -> None:
    stored = {i.name: i for i in proto.graph.initializer}
    position = 1 if kind == "activation-scale" else 2
    array = numpy_helper.to_array(stored[pair[0].input[position]])
    if kind == "activation-scale":
        factor = float(generator.choice([0.4, 0.5, 3.0, 5.0]))
        changed = array * np.float32(factor)
        _rescale_biases(proto, pair, factor)
    else:
        changed = np.clip(array.astype(np.int64) + int(generator.choice([-60, 60])), 0, 255).astype(
            array.dtype
        )
    for n in pair:
        _replace(proto, n, position, changed.astype(array.dtype))


def _rescale_biases(proto: onnx.ModelProto, pair: tuple[onnx.NodeProto, ...], factor: float) -> None:
    """INT32 biases of the readers follow the scale, as a quantizer would have stored them.

    ONNX Runtime's integer kernels take a bias to be on the scale of input times weight, whatever its own
    DequantizeLinear says: left alone, the fault would be the reader's.
    """
    stored = {i.name: i for i in proto.graph.initializer}
    made = {o: n for n in proto.graph.node for o in n.output}
    behind = {o for dq in pair[1:] for o in dq.output}
    for node in proto.graph.node:
        bias = made.get(node.input[2]) if len(node.input) > 2 and node.input[0] in behind else None
        if bias is None or bias.op_type != "DequantizeLinear" or bias.input[0] not in stored:
            continue
        integers, scale = (numpy_helper.to_array(stored[name]) for name in bias.input[:2])
        _replace(proto, bias, 0, np.rint(integers / factor).astype(integers.dtype))
        _replace(proto, bias, 1, (scale * factor).astype(scale.dtype))


def _replace(proto: onnx.ModelProto, node: onnx.NodeProto, position: int, array: np.ndarray) -> None:
    name = f"{node.name}_spoiled_{position}"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(array, order="C"), name))
    node.input[position] = name


def spoil_tflite(path: Path, out: Path, generator: np.random.Generator, module: nn.Module) -> Fault:
    """A .tflite file with one layer's weights overwritten in its buffer, byte for byte in place."""
    from ai_edge_litert import schema_py_generated as schema

    data = bytearray(path.read_bytes())
    model = schema.Model.GetRootAs(data, 0)
    sub = model.Subgraphs(0)
    cores = [
        op
        for op in (sub.Operators(i) for i in range(sub.OperatorsLength()))
        if model.OperatorCodes(op.OpcodeIndex()).BuiltinCode() in (3, 4, 9)
    ]
    op = cores[int(generator.integers(len(cores)))]
    tensor = sub.Tensors(op.Inputs(1))
    buffer = model.Buffers(tensor.Buffer())
    view = buffer.DataAsNumpy().view(np.int8)
    shape = tensor.ShapeAsNumpy()
    kind = str(generator.choice(KINDS))
    depthwise_code = model.OperatorCodes(op.OpcodeIndex()).BuiltinCode() == 4
    place = owner(tensor.Name().decode(), np.squeeze(view.reshape(shape)), module)
    changed = spoil(view.reshape(shape), 3 if depthwise_code else 0, kind, generator)
    view[:] = np.clip(np.rint(changed), -127, 127).astype(np.int8).ravel()
    out.write_bytes(data)
    return Fault(module=place, kind=kind)
