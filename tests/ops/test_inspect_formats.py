"""One network in every format: what is counted agrees, with what is known of it; damage is a typed error."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from edgekit import entropy
from edgekit.artifact.inspect import Scales, Takes, inspect_file, reach
from edgekit.backends import openvino, tflite
from edgekit.backends.nvidia.engine import EngineKey, write_record
from edgekit.core import targets
from edgekit.errors import (
    ContainerError,
    EdgekitError,
    EngineMismatchError,
    SourceError,
    UntrustedSourceError,
)
from edgekit.graph import io, passes

PARAMETERS = 11_689_512
"""Of ResNet-18 (He et al., 2015), as torchvision states them."""
MACS = 1_814_073_344
"""1.81 GMACs at 224 × 224."""
CHANNELS = 4_800
"""Of its batch normalizations: folded, scale and shift of each become one bias."""

needs_litert = pytest.mark.skipif(
    not importlib.util.find_spec("ai_edge_litert"), reason="needs the extra tflite"
)
needs_openvino = pytest.mark.skipif(
    not importlib.util.find_spec("openvino"), reason="needs the extra openvino"
)


class Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))
        plain = before == width and stride == 1
        skip = () if plain else (nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.two(torch.relu(self.one(x))) + self.skip(x))


def resnet18() -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
    ]
    blocks = [Block(*w) for w in (*widths, (512, 512, 1))]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as if it were trained: no two biases are equal
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("resnet18")
    network, example = resnet18(), (torch.zeros(1, 3, 224, 224),)
    program = torch.export.export(network, example)
    torch.export.save(program, folder / "r.pt2")
    torch.onnx.export(program, (), folder / "r.onnx", dynamo=True, external_data=False, verbose=False)
    made = {"pt2": folder / "r.pt2", "onnx": folder / "r.onnx"}
    model = passes.optimize(io.describe(folder / "r.onnx"), folder / "optimized.onnx")
    for name, backend, needed in (("tflite", tflite, "ai_edge_litert"), ("openvino", openvino, "openvino")):
        if importlib.util.find_spec(needed):
            out = folder / name
            out.mkdir()
            lowered = backend.lower(model, targets.find(f"{name}-fp32"), {}, out)
            made[name] = out / lowered.files[0]
    return made


def test_resnet18_is_the_same_in_every_format(forms):
    found = {name: inspect_file(path) for name, path in forms.items()}
    assert {name: f.macs for name, f in found.items()} == dict.fromkeys(found, MACS)
    assert found.pop("pt2").parameters == PARAMETERS
    assert {name: f.parameters for name, f in found.items()} == dict.fromkeys(found, PARAMETERS - CHANNELS)
    for inspection in found.values():
        (taken,), (given,) = inspection.inputs, inspection.outputs
        assert (taken.dtype, taken.shape) == ("float32", (1, 3, 224, 224))
        assert (given.dtype, given.shape) == ("float32", (1, 1000))
        assert sum(len(w.shape) == 4 for w in inspection.layers) == 20
        assert sum(w.count for w in inspection.layers) == PARAMETERS - 2 * CHANNELS - 1000
        assert inspection.size > 4 * PARAMETERS * 0.99


def test_operators_are_counted(forms):
    assert inspect_file(forms["onnx"]).operators["Conv"] == 20
    assert inspect_file(forms["pt2"]).operators["aten.conv2d"] == 20
    if "tflite" in forms:
        assert inspect_file(forms["tflite"]).operators["CONV_2D"] == 20
    if "openvino" in forms:
        assert inspect_file(forms["openvino"]).operators["Convolution"] == 20


# --- quantization ---------------------------------------------------------------------------------------------------


def graph(
    nodes, weights, path: Path, *, domains=(), batch: object = 2, width: int = 64, dtype=TensorProto.FLOAT
) -> Path:
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", dtype, [batch, width])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 32])],
            [t if isinstance(t, TensorProto) else numpy_helper.from_array(t, n) for n, t in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 21), *(helper.make_opsetid(d, 1) for d in domains)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


def one(path: Path):
    inspection = inspect_file(path)
    (weight,) = inspection.layers
    return inspection, weight


@pytest.mark.parametrize(
    ("scale", "axis", "block", "scales"),
    [((), 0, 0, Scales.TENSOR), ((32,), 1, 0, Scales.CHANNEL), ((2, 32), 0, 32, Scales.BLOCK)],
)
def test_what_shares_a_scale(scale, axis, block, scales, tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node(
            "DequantizeLinear", ["w", "ws"], ["wd"], axis=axis, **({"block_size": block} if block else {})
        ),
        helper.make_node("MatMul", ["d", "wd"], ["y"], name="product"),
    ]
    weights = {
        "w": np.ones((64, 32), np.int8),
        "ws": np.ones(scale, np.float32),
        "xs": np.float32(1),
        "xz": np.uint8(0),
    }
    inspection, weight = one(graph(nodes, weights, tmp_path / "m.onnx"))
    assert (weight.layer, weight.op, weight.dtype, weight.input) == ("product", "MatMul", "int8", "uint8")
    assert (weight.scales, weight.block) == (scales, block)
    assert inspection.parameters == 64 * 32
    assert inspection.macs == 2 * 64 * 32


def test_blocks_of_matmulnbits(tmp_path):
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", K=64, N=32, bits=4, block_size=16
    )
    weights = {"w": np.zeros((32, 4, 8), np.uint8), "s": np.ones(128, np.float32)}
    inspection, weight = one(graph([node], weights, tmp_path / "m.onnx", domains=["com.microsoft"]))
    assert (weight.dtype, weight.shape, weight.count, weight.size) == ("uint4", (32, 64), 2048, 1024)
    assert (weight.scales, weight.block) == (Scales.BLOCK, 16)
    assert (inspection.parameters, inspection.macs) == (2048, 2 * 2048)


def test_float16_and_shared_vectors(tmp_path):
    """A bias that two layers share counts for both: exporters merge equal ones. A matrix is one that is shared."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Gemm", ["h", "w", "b"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "b"], ["c"]),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = {"w": np.ones((32, 32), np.float16), "b": np.ones(32, np.float16)}
    inspection, weight = one(graph(nodes, weights, tmp_path / "m.onnx", width=32))
    assert (weight.dtype, weight.scales) == ("float16", None)
    assert inspection.parameters == 32 * 32 + 2 * 32


@needs_litert
@needs_openvino
def test_int8_and_float16_artifacts_say_so(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-127, 127, (64, 32), np.int8),
        "ws": np.full(32, 0.01, np.float32),
        "xs": np.float32(0.1),
        "xz": np.int8(0),
    }
    model = io.describe(graph(nodes, weights, tmp_path / "m.onnx"))
    for backend, target in ((tflite, "tflite-int8"), (openvino, "openvino-int8")):
        out = tmp_path / target
        out.mkdir()
        lowered = backend.lower(model, targets.find(target), {}, out)
        _, weight = one(out / lowered.files[0])
        assert weight.dtype == "int8", target
        assert weight.scales is Scales.CHANNEL
    assert weight.input in ("int8", "uint8")  # OpenVINO's; the other's last layer takes floats


# --- formats that no runtime is needed for ----------------------------------------------------------------------------


def engine(path: Path, *, mark: bytes = b"vtrt", size: int = 256, version=(1, 7, 1, 116)) -> Path:
    head = struct.pack("<4s3IQ4BI", mark, 0, 2, 0, size, *version, 0)
    path.write_bytes(head + bytes(256 - len(head)))
    return path


def test_an_engine_is_opaque(tmp_path):
    path = engine(tmp_path / "m.engine")
    found = inspect_file(path)
    assert found.facts["version"] == "1.7.1.116"
    assert found.facts["runtime"] == "TensorRT for RTX"
    assert (found.parameters, found.macs, found.operators) == (None, None, {})
    assert "nothing says for which GPU" in found.notes[1]
    write_record(path, EngineKey(graph_sha256="0" * 64, runtime="tensorrt_rtx", version="1.7.1.116"))
    assert inspect_file(path).facts["graph_sha256"] == "0" * 64
    (tmp_path / "other").mkdir()
    other = engine(tmp_path / "other" / "m.engine", mark=b"ftrt", version=(10, 3, 0, 26))
    assert inspect_file(other).facts["version"] == "10.3.0.26"


def test_an_engine_that_is_not_what_it_says(tmp_path):
    with pytest.raises(SourceError, match="states 999"):
        inspect_file(engine(tmp_path / "m.engine", size=999))
    (tmp_path / "m.engine").write_bytes(b"vtrt")
    with pytest.raises(SourceError, match="cut short"):
        inspect_file(tmp_path / "m.engine")
    (tmp_path / "m.engine").write_bytes(bytes(64))
    with pytest.raises(SourceError, match="does not begin as one"):
        inspect_file(tmp_path / "m.engine")
    write_record(
        engine(tmp_path / "m.engine"), EngineKey(graph_sha256="0", runtime="tensorrt_rtx", version="1.0.0.0")
    )
    with pytest.raises(EngineMismatchError, match=r"1\.0\.0\.0"):
        inspect_file(tmp_path / "m.engine")


def test_a_packed_model_is_looked_into(forms, tmp_path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path = graph(nodes, {"w": np.ones((64, 32), np.float32)}, tmp_path / "model.onnx", batch="batch")
    (tmp_path / "folder").mkdir()
    path.rename(tmp_path / "folder" / "model.onnx")
    for source, name in ((tmp_path / "folder", "f.ekz"), (tmp_path / "folder" / "model.onnx", "s.ekz")):
        entropy.pack(source, tmp_path / name, coder="huffman")
        found = inspect_file(tmp_path / name)
        assert (found.parameters, found.macs, dict(found.operators)) == (2048, 2048, {"MatMul": 1})
        assert str(found.inputs[0]) == "x: float32[batch, 64]"
        assert found.facts["model"] == "model.onnx"
        assert {r.takes for r in reach.of(found)} == {Takes.NO}


def test_gguf_blocks(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    raw = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.attn_q.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = inspect_file(tmp_path / "m.gguf")
    words, matrix = found.layers
    assert (words.dtype, words.scales, words.shape) == ("float32", None, (8, 64))
    assert (matrix.dtype, matrix.scales, matrix.block, matrix.shape) == ("Q4_1", Scales.BLOCK, 32, (4, 64))
    assert found.parameters == 8 * 64 + 4 * 64
    assert found.macs == found.parameters  # no head of its own: the table of words is it
    assert found.facts["architecture"] == "llama"


def test_a_list_of_a_gguf_ends_with_the_file(tmp_path):
    """2**62 members of one byte: the package would ask for each of them."""
    pytest.importorskip("gguf")
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    (tmp_path / "m.gguf").write_bytes(head + struct.pack("<IIQ", 9, 0, 2**62))
    with pytest.raises(SourceError, match="leads out of the file"):
        inspect_file(tmp_path / "m.gguf")


def ir(path: Path, body: str, weights: bytes = b"") -> Path:
    path.write_text(f'<?xml version="1.0"?><net name="n" version="11">{body}</net>')
    if weights:
        path.with_suffix(".bin").write_bytes(weights)
    return path


CONST = (
    '<layer id="0" name="w" type="Const"><data element_type="f32" shape="2,2" offset="0" size="16"/></layer>'
)


def test_an_ir_is_not_believed(tmp_path):
    with pytest.raises(SourceError, match=r"no m\.bin beside it"):
        inspect_file(ir(tmp_path / "m.xml", f"<layers>{CONST}</layers>"))
    with pytest.raises(SourceError, match="cut short"):
        inspect_file(ir(tmp_path / "m.xml", f"<layers>{CONST}</layers>", bytes(8)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "m.bin").write_bytes(bytes(16))
    (tmp_path / "m.bin").unlink()
    (tmp_path / "m.bin").symlink_to(tmp_path / "elsewhere" / "m.bin")
    assert inspect_file(tmp_path / "m.xml").size  # inside the folder
    outside = tmp_path / "elsewhere" / "m.xml"
    outside.write_bytes((tmp_path / "m.xml").read_bytes())
    outside.with_suffix(".bin").unlink()
    outside.with_suffix(".bin").symlink_to("/etc/hostname")
    with pytest.raises(SourceError, match="leaves the folder"):
        inspect_file(outside)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<layers><layer/></layers>",
        '<layers><layer id="0" type="Result"/></layers><edges><edge from-layer="7" to-layer="0" to-port="0"/></edges>',
        CONST.join(("<layers>", "</layers>")).replace("16", "99999999999999999999999"),
        CONST.join(("<layers>", "</layers>")).replace("16", "-4"),
        "<layers>"
        + '<layer id="0" type="If"><body><layers>' * 40
        + "</layers></body></layer>" * 40
        + "</layers>",
        "<layers>" * 100_000,
    ],
)
def test_a_damaged_ir_is_a_typed_error(body, tmp_path):
    with pytest.raises(SourceError):
        inspect_file(ir(tmp_path / "m.xml", body, bytes(16)))


def test_a_document_type_is_refused(tmp_path):
    bomb = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "a" * 100}">' for n in range(12))
    for text in (
        f"<!DOCTYPE net [{bomb}]><net>&a11;</net>",
        '<!DOCTYPE net SYSTEM "file:///etc/passwd"><net/>',
    ):
        for encoding in ("utf-8", "utf-16"):
            (tmp_path / "m.xml").write_bytes(text.encode(encoding))
            with pytest.raises(SourceError, match="is not an OpenVINO model"):
                inspect_file(tmp_path / "m.xml")


def test_pickles_of_a_program_are_not_read(forms, tmp_path):
    with zipfile.ZipFile(forms["pt2"]) as given, zipfile.ZipFile(tmp_path / "m.pt2", "w") as made:
        for entry in given.infolist():
            data = given.read(entry)
            if entry.filename.endswith("sample_inputs/model.pt"):
                data = b"cos\nmkdir\n(S'" + str(tmp_path / "executed").encode() + b"'\ntR."
            if entry.filename.endswith("weights_config.json"):
                document = json.loads(data)
                next(iter(document["config"].values()))["use_pickle"] = True
                data = json.dumps(document).encode()
            made.writestr(entry.filename, data)
    found = inspect_file(tmp_path / "m.pt2")
    assert found.parameters == PARAMETERS
    assert "--trust" in found.notes[0]
    assert not (tmp_path / "executed").exists()


def test_an_open_axis_of_a_program(tmp_path):
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "m.pt2")
    found = inspect_file(tmp_path / "m.pt2")
    ((axis, width),) = [spec.shape for spec in found.inputs]
    assert isinstance(axis, str)
    assert (width, found.macs, found.parameters) == (4, 12, 15)
    assert "dynamic axes count as 1" in found.notes[0]


@pytest.mark.parametrize("kind", ["onnx", "tflite", "openvino", "pt2"])
def test_whatever_is_cut_off_or_flipped_is_a_typed_error(kind, forms, tmp_path):
    if kind not in forms:
        pytest.skip(f"{kind} is not installed")
    source = forms[kind]
    data, draw = source.read_bytes(), random.Random(0)
    head, path = data[: 1 << 16], tmp_path / source.name
    if kind == "openvino":
        path.with_suffix(".bin").write_bytes(b"")
    for cut in (0, 1, 7, 8, 100, 5000, len(head) - 1):
        path.write_bytes(head[:cut])
        with pytest.raises(EdgekitError):
            inspect_file(path)
    for _ in range(5):
        changed = bytearray(head)
        for at in draw.sample(range(len(head)), 20):
            changed[at] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(EdgekitError):
            inspect_file(path)


def test_a_damaged_container_is_a_typed_error(tmp_path):
    (tmp_path / "m.ekz").write_bytes(b"EKZ\x01" + bytes(100))
    with pytest.raises(ContainerError):
        inspect_file(tmp_path / "m.ekz")


def test_sizes_that_no_model_has(tmp_path):
    huge = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2**62, 2**62])
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2**62, 2**62])
    model = helper.make_model(helper.make_graph(nodes, "g", [huge], [out]), ir_version=9)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="states sizes that no model has"):
        inspect_file(tmp_path / "m.onnx")


def test_shapes_and_kinds_that_no_source_may_have(tmp_path):
    """To look at a file is not to take it as a source."""
    unknown = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    texts = helper.make_tensor_value_info("t", TensorProto.STRING, ["n"])
    many = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("SequenceAt", ["s", "i"], ["z"])]
    outs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "yz"]
    index = numpy_helper.from_array(np.array(0, np.int64), "i")
    body = helper.make_graph(nodes, "g", [unknown, texts, many], outs, [index])
    onnx.save(helper.make_model(body, ir_version=9), tmp_path / "m.onnx")
    found = inspect_file(tmp_path / "m.onnx")
    assert [(i.name, i.dtype) for i in found.inputs] == [("x", "float32"), ("t", "string"), ("s", "sequence")]
    assert found.inputs[0].shape == ("unknown rank",)
    assert {r.takes for r in reach.of(found)} == {Takes.NO}


def test_what_is_no_file_is_said_to_be_none(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="a pipe or a device"):
        inspect_file(tmp_path / "m.onnx")


def test_external_data_may_not_leave_the_folder(tmp_path):
    tensor = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=(64, 32), data_location=TensorProto.EXTERNAL
    )
    tensor.external_data.add(key="location", value="../secret")
    with pytest.raises(UntrustedSourceError):
        inspect_file(
            graph([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": tensor}, tmp_path / "m.onnx")
        )


# --- which targets --------------------------------------------------------------------------------------------------


def answers(path: Path) -> dict[str, tuple[Takes, str]]:
    return {r.target: (r.takes, r.reason) for r in reach.of(inspect_file(path))}


def test_every_target_has_an_answer(forms, tmp_path):
    for path in forms.values():
        found = answers(path)
        assert set(found) == set(targets.known())
        assert all(reason for takes, reason in found.values() if takes is not Takes.YES)
    assert {t for t, _ in answers(engine(tmp_path / "m.engine")).values()} == {Takes.NO}
    assert answers(forms["pt2"])["ort-fp32"][0] is Takes.UNCHECKED
    assert answers(forms["onnx"])["ort-genai-int4"][0] is Takes.NO


@needs_litert
def test_a_backend_that_can_tell_is_asked(tmp_path):
    weights = {"w": np.ones((64, 32), np.float32)}
    fine = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], weights, tmp_path / "m.onnx", batch="batch")
    takes, reason = answers(fine)["tflite-int8"]
    assert takes is Takes.YES
    assert "dynamic axes" in reason
    odd = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Binarizer", ["h"], ["y"], domain="ai.onnx.ml", threshold=0.5),
    ]
    takes, reason = answers(graph(odd, weights, tmp_path / "m.onnx", domains=["ai.onnx.ml"]))["tflite-fp32"]
    assert takes is Takes.UNCHECKED
    assert "Binarizer" in reason


def test_an_operator_of_nobodys_is_no_source(tmp_path):
    node = helper.make_node("Magic", ["x"], ["y"], domain="com.acme")
    found = inspect_file(graph([node], {}, tmp_path / "m.onnx", domains=["com.acme"]))
    assert found.custom == ("com.acme.Magic",)
    assert {r.takes for r in reach.of(found)} == {Takes.NO}
    assert all(
        "com.acme.Magic" in r.reason
        for r in reach.of(found)
        if not r.target.startswith(("ort-genai", "openvino-genai"))
    )
