"""The graph for Model Explorer: what it has of hand-made files of each format, and what is laid over them."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edgekit.artifact import explorer
from edgekit.artifact.explorer import overlay
from edgekit.artifact.explorer.graph import Graph, Names, Node, Tensor
from edgekit.artifact.explorer.overlay import Index, Overlay
from edgekit.artifact.explorer.write import command, draw, write
from edgekit.artifact.manifest import FileRecord, Manifest
from edgekit.artifact.profile import OperatorTime
from edgekit.cli import cli
from edgekit.diff import Walk
from edgekit.diff.overlay import of_walk
from edgekit.diff.report import LayerDiff, StageDiff
from edgekit.errors import EdgekitError, SourceError, UsageError
from edgekit.types import Fallback, Placement, Precision, SourceRecord, Target

FLOAT = TensorProto.FLOAT
needs_litert = pytest.mark.skipif(
    not importlib.util.find_spec("ai_edge_litert"), reason="needs the extra tflite"
)


def value(name, *shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, list(shape))


def array(name, *shape, dtype=np.float32):
    return numpy_helper.from_array(np.ones(shape, dtype), name)


def save(path: Path, nodes, inputs, outputs, constants=(), **more) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", 21), *more.pop("opsets", [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, **more), path)
    return path


def convolution(path: Path, batch: object = "n") -> Path:
    """Conv (3 to 4 channels, 3 × 3, without padding, on 8 × 8) → Relu, in a module; quantized weights."""
    conv = helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv")
    scopes = "['', 'body', 'body.0', 'conv']"
    conv.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], name="widen"),
        conv,
        helper.make_node("Relu", ["c"], ["y"], name=""),
    ]
    constants = [
        array("q", 4, 3, 3, 3, dtype=np.int8),
        array("s"),
        array("z", dtype=np.int8),
        array("b", 4),
    ]
    return save(path, nodes, [value("x", batch, 3, 8, 8)], [value("y", batch, 4, 6, 6)], constants)


def by_op(graph: Graph) -> dict[str, Node]:
    return {node.op: node for node in graph.nodes}


def wires(graph: Graph) -> set[tuple[str, int, str, int]]:
    return {(e.source, e.output, node.id, e.input) for node in graph.nodes for e in node.edges}


def test_an_onnx_graph_has_its_nodes_edges_types_and_products(tmp_path):
    (graph,) = explorer.graphs(convolution(tmp_path / "m.onnx"))
    assert [n.op for n in graph.nodes] == ["Input", "DequantizeLinear", "Conv", "Relu", "Output"]
    assert wires(graph) == {
        ("x", 0, "conv", 0),
        ("widen", 0, "conv", 1),
        ("conv", 0, "y", 0),
        ("y", 0, "y (output)", 0),
    }
    conv = by_op(graph)["Conv"]
    assert conv.macs == 6 * 6 * 4 * 3 * 3 * 3
    assert conv.module == "body.0"
    assert conv.precision == "float32 × int8"
    assert conv.outputs[0].shape == ("n", 4, 6, 6)
    assert conv.inputs[2] is not None
    assert conv.inputs[2].text == "float32 4 constant"
    assert by_op(graph)["Relu"].macs == 0
    assert by_op(graph)["Relu"].precision == ""


def test_bodies_are_graphs_of_their_own_and_named_by_who_runs_them(tmp_path):
    def branch(name, op):
        return helper.make_graph(
            [helper.make_node(op, ["x"], [f"{name}_y"])], name, [], [value(f"{name}_y", 2)]
        )

    node = helper.make_node(
        "If", ["c"], ["y"], name="if", then_branch=branch("then", "Neg"), else_branch=branch("else", "Abs")
    )
    path = save(
        tmp_path / "m.onnx", [node], [value("c", dtype=TensorProto.BOOL), value("x", 2)], [value("y", 2)]
    )
    main_graph, *bodies = explorer.graphs(path)
    assert set(by_op(main_graph)["If"].bodies) == {body.id for body in bodies} == {"then", "else"}
    assert {n.op for body in bodies for n in body.nodes} == {"Neg", "Abs", "Output"}


def test_a_function_of_the_file_is_a_graph(tmp_path):
    inner = helper.make_function(
        "own",
        "twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
    )
    node = helper.make_node("twice", ["x"], ["y"], domain="own")
    path = save(
        tmp_path / "m.onnx",
        [node],
        [value("x", 2)],
        [value("y", 2)],
        functions=[inner],
        opsets=[helper.make_opsetid("own", 1)],
    )
    main_graph, body = explorer.graphs(path)
    assert by_op(main_graph)["own.twice"].bodies == (body.id,)
    assert "Add" in by_op(body)


def compiled(path: Path) -> Path:
    """The same as a ``.tflite``."""
    from edgekit.backends import tflite
    from edgekit.core import targets
    from edgekit.graph import io, passes

    model = passes.optimize(io.describe(path), path.with_name("optimized.onnx"))
    return path.parent / tflite.lower(model, targets.find("tflite-fp32"), {}, path.parent).files[0]


@needs_litert
def test_a_tflite_graph_has_the_same_products(tmp_path):
    (graph,) = explorer.graphs(compiled(convolution(tmp_path / "m.onnx", 1)))
    conv = by_op(graph)["CONV_2D"]
    assert conv.macs == 6 * 6 * 4 * 3 * 3 * 3
    assert conv.precision == "float32 × int8"  # widened when the file is loaded
    assert conv.outputs[0].shape == (1, 6, 6, 4)
    assert {"Input", "Output"} <= set(by_op(graph))
    reached, pending = set(), [n.id for n in graph.nodes if n.op == "Output"]
    sources = {n.id: [e.source for e in n.edges] for n in graph.nodes}
    while pending:
        reached.add(node := pending.pop())
        pending += sources[node]
    assert {n.id for n in graph.nodes if n.op == "Input"} <= reached


IR = """<?xml version="1.0"?><net name="n" version="11"><layers>
<layer id="0" name="x" type="Parameter"><data shape="1,8" element_type="f32"/>
  <output><port id="0" precision="FP32" names="x"><dim>1</dim><dim>8</dim></port></output></layer>
<layer id="1" name="axis" type="Const"><data element_type="i64" shape="" offset="0" size="8"/>
  <output><port id="0" precision="I64"/></output></layer>
<layer id="2" name="halves" type="Split"><data num_splits="2"/>
  <input><port id="0"><dim>1</dim><dim>8</dim></port><port id="1"/></input>
  <output><port id="2" precision="FP32"><dim>1</dim><dim>4</dim></port>
          <port id="3" precision="FP32"><dim>1</dim><dim>4</dim></port></output></layer>
<layer id="3" name="w" type="Const"><data element_type="f32" shape="4,2" offset="8" size="32"/>
  <output><port id="0" precision="FP32"><dim>4</dim><dim>2</dim></port></output></layer>
<layer id="4" name="product" type="MatMul"><data transpose_a="false" transpose_b="false"/>
  <input><port id="0"><dim>1</dim><dim>4</dim></port><port id="1"><dim>4</dim><dim>2</dim></port></input>
  <output><port id="2" precision="FP32"><dim>1</dim><dim>2</dim></port></output></layer>
<layer id="5" name="y" type="Result"><input><port id="0"><dim>1</dim><dim>2</dim></port></input></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
<edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
<edge from-layer="2" from-port="3" to-layer="4" to-port="0"/>
<edge from-layer="3" from-port="0" to-layer="4" to-port="1"/>
<edge from-layer="4" from-port="2" to-layer="5" to-port="0"/></edges></net>"""


def test_an_ir_tells_which_output_is_read(tmp_path):
    (tmp_path / "m.xml").write_text(IR)
    (tmp_path / "m.bin").write_bytes(bytes(40))
    (graph,) = explorer.graphs(tmp_path / "m.xml")
    assert wires(graph) == {("x", 0, "halves", 0), ("halves", 1, "product", 0), ("product", 0, "y", 0)}
    product = by_op(graph)["MatMul"]
    assert (product.macs, product.precision) == (8, "float32 × float32")
    assert [n.op for n in graph.nodes] == ["Input", "Split", "MatMul", "Output"]


def test_what_has_no_graph_is_said_to_have_none(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match="no graph"):
        explorer.graphs(tmp_path / "m.gguf")
    (tmp_path / "m.onnx").write_bytes(b"\x08\x0a\xff\xff")
    with pytest.raises(SourceError):
        explorer.graphs(tmp_path / "m.onnx")


def test_ids_are_unique_whatever_the_names():
    names = Names()
    given = [names.new(name) for name in ("a", "a", "a#2", "a", "", "")]
    assert len(set(given)) == 6
    assert given[0] == "a"


# --- what is laid over it ---------------------------------------------------------------------------------


def node(name, op="Conv", *, macs=10, module="", tensors=()):
    made = tuple(Tensor(name=t) for t in tensors)
    return Node(id=name, op=op, names=(name, *tensors), outputs=made, macs=macs, module=module)


GRAPH = Graph(
    id="g",
    nodes=(
        node("pad", "Pad", macs=0, module="stem"),
        node("conv", module="stem", tensors=("conv_out",)),
        node("conv_1", module="head"),
        node("add", "Add", macs=0),
    ),
)


@pytest.mark.parametrize(
    ("names", "module", "expected"),
    [
        (["conv"], "", "conv"),
        (["conv_out"], "", "conv"),
        (["unknown", "add"], "", "add"),
        (["conv_quant"], "", "conv"),  # what a runtime appended
        (["conv_out:0"], "", "conv"),
        (["conv_12"], "", None),  # another node's number
        (["unknown"], "stem", "conv"),  # the product of the module, not what pads for it
        (["unknown"], "", None),
        ([], "nowhere", None),
    ],
)
def test_a_name_finds_its_node(names, module, expected):
    found = Index([GRAPH]).find(names, module)
    assert found == (None if expected is None else ("g", expected))


def manifest(placement) -> Manifest:
    return Manifest(
        edgekit="1",
        status="passed",
        target=Target(name="t", backend="b", precision=Precision.FP32, runs_on="cpu", file="model"),
        source=SourceRecord(text="s", kind="k", sha256=""),
        files=(FileRecord(name="model", size=1, sha256=""),),
        placement=placement,
    )


def placed(*fallbacks, share=0.5):
    record = manifest(Placement(precision="int8", share=share, operators=4, fallbacks=fallbacks))
    return {o.key: o for o in overlay.of_manifest([GRAPH], record)}


def test_placement_says_of_each_product_whether_it_is_as_asked():
    found = placed(Fallback(op="Conv", count=1, reason="no kernel", nodes=("conv_1",)))["placement"]
    assert found.values == {("g", "conv"): "as asked", ("g", "conv_1"): "no kernel"}
    assert found.colours["as asked"] != found.colours["no kernel"]


def test_an_operator_is_meant_as_a_whole_or_none_can_be_told():
    every = placed(Fallback(op="Conv", count=2, reason="no kernel"))["placement"]
    assert set(every.values.values()) == {"no kernel"}
    assert placed(Fallback(op="Conv", count=1, reason="no kernel")) == {}  # which of the two, nobody said
    assert placed(share=None) == {}


def operator(name, us, *nodes, placed="kernel", precision="int8"):
    return OperatorTime(
        name=name, op="x", module="", us=us, share=None, placed=placed, precision=precision, nodes=nodes
    )


def test_times_of_a_profile_go_to_the_first_of_fused_nodes():
    operators = [operator("fused", 5.0, "conv", "add"), operator("conv_1", 2.0), operator("reorder_7", 1.0)]
    found = {o.key: o for o in overlay.of_profile([GRAPH], operators)}
    assert found["time"].values == {("g", "conv"): 5.0, ("g", "conv_1"): 2.0}
    assert found["ran-on"].values[("g", "add")] == "kernel int8"
    assert found["time"].unplaced == 1
    assert [o.key for o in overlay.of_profile([GRAPH], [operator("conv", None)])] == ["ran-on"]


def layer(node, local, excess, module=""):
    return LayerDiff(
        order=0,
        module=module,
        node=node,
        op="x",
        tensor="",
        local_db=local,
        accumulated_db=0,
        excess_db=excess,
    )


def test_a_comparison_gives_each_node_its_worst_stage():
    one = (layer("conv_in_pytorch", 30.0, 2.0, "stem"), layer("gone", 10.0, 20.0))
    two = (layer("conv_out", 50.0, 4.0), layer("add", 200.0, -200.0))
    stages = tuple(
        StageDiff(before="a", after="b", output_db=0, source_db=0, layers=layers) for layers in (one, two)
    )
    found = {o.key: o for o in of_walk([GRAPH], Walk(stages=stages, samples=1))}
    assert found["snr"].values == {("g", "conv"): 30.0, ("g", "add"): 200.0}
    assert found["beyond-rounding"].values == {("g", "conv"): 4.0}  # what is exact makes no error
    assert found["snr"].unplaced == 1


# --- what is written --------------------------------------------------------------------------------------


def test_files_of_one_model_add_up_and_those_of_another_do_not(tmp_path):
    drawn = draw(convolution(tmp_path / "m.onnx"))
    place = drawn.graphs[0].id, "conv"
    out = tmp_path / "out"
    first = write(drawn, out, [Overlay(key="snr", title="SNR", values={place: 30.123456})])
    assert json.loads((out / "snr.json").read_bytes())[place[0]]["results"] == {"conv": {"value": 30.12}}
    again = write(drawn, out, [Overlay(key="time", title="µs", values={place: 3.0})])
    assert [p.name for p in first] == ["graph.json", "macs.json", "precision.json", "snr.json"]
    assert [p.name for p in again] == ["graph.json", "macs.json", "precision.json", "time.json", "snr.json"]
    other = draw(
        save(tmp_path / "o.onnx", [helper.make_node("Neg", ["x"], ["y"])], [value("x", 2)], [value("y", 2)])
    )
    (out / "placement.json").write_text("[" * 100_000)  # somebody's: neither read nor removed
    assert [p.name for p in write(other, out)] == ["graph.json"]
    assert (out / "snr.json").is_file()
    assert command(again)[1:] == [
        str(out / "graph.json"),
        f"--node_data_paths={','.join(map(str, again[1:]))}",
    ]
    assert command([out / "graph.json"]) == ["model-explorer", str(out / "graph.json")]


def test_the_json_is_what_model_explorer_opens(tmp_path):
    """Its form: see graph_builder.py and node_data_builder.py of ai-edge-model-explorer."""
    written = write(draw(convolution(tmp_path / "m.onnx")), tmp_path / "out")
    document = json.loads(written[0].read_bytes())
    (graph,) = document["graphs"]
    ids = {n["id"] for n in graph["nodes"]}
    assert all(e["sourceNodeId"] in ids for n in graph["nodes"] for e in n["incomingEdges"])
    (conv,) = [n for n in graph["nodes"] if n["label"] == "Conv"]
    assert conv["namespace"] == "body/0"
    attributes = {pair["key"]: pair["value"] for pair in conv["attrs"]}
    assert attributes["multiply-accumulates"] == "3,888"
    assert attributes["precision"] == "float32 × int8"
    macs = json.loads((tmp_path / "out" / "macs.json").read_bytes())
    assert macs[graph["id"]]["results"] == {"conv": {"value": 3888.0}}
    assert [step["stop"] for step in macs[graph["id"]]["gradient"]] == [0, 1]


def test_the_command_writes_beside_what_it_shows(tmp_path):
    path, out = convolution(tmp_path / "m.onnx"), tmp_path / "a b"
    done = CliRunner().invoke(cli, ["inspect", str(path), "--graph", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["macs"] == 3888
    assert f"model-explorer '{out / 'graph.json'}'" in done.stderr
    (tmp_path / "m.ekz").write_bytes(b"EKZ\x01")
    refused = CliRunner().invoke(cli, ["inspect", str(tmp_path / "m.ekz"), "--graph", str(out)])
    assert isinstance(refused.exception, UsageError)


def test_a_comparison_of_sources_alone_has_no_file_to_draw(tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\ndef f():\n    return torch.nn.Linear(4, 2), torch.zeros(1, 4)\n"
    )
    source = f"{tmp_path / 'net.py'}:f"
    done = CliRunner().invoke(cli, ["diff", source, source, "--graph", str(tmp_path / "out")])
    assert isinstance(done.exception, UsageError)
    assert "export" not in done.output  # said before anything is worked on
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["onnx", "xml", pytest.param("tflite", marks=needs_litert)])
def test_a_damaged_file_is_a_typed_error_or_still_a_graph(kind, tmp_path):
    path = convolution(tmp_path / "m.onnx", 1)
    if kind == "xml":
        path = tmp_path / "m.xml"
        path.write_text(IR)
        (tmp_path / "m.bin").write_bytes(bytes(40))
    elif kind == "tflite":
        path = compiled(path)
    data = path.read_bytes()
    generator = random.Random(7)
    refused = 0
    for _ in range(150):
        changed = bytearray(data[: generator.randrange(len(data))] if generator.random() < 0.2 else data)
        for _ in range(generator.randrange(1, 4)):
            if changed:
                changed[generator.randrange(len(changed))] = generator.randrange(256)
        path.write_bytes(changed)
        try:
            json.dumps(draw(path).document(), allow_nan=False)
        except EdgekitError:
            refused += 1
    assert 0 < refused < 150
