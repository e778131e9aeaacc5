"""Sources that are loaded: user code, programs, pickles, ONNX files, Hugging Face directories, TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from edgekit import load  # noqa: E402
from edgekit.errors import FactoryError, SourceError, UntrustedSourceError  # noqa: E402
from edgekit.graph import io  # noqa: E402
from edgekit.graph.nested import call  # noqa: E402
from edgekit.types import OnnxModel, TorchModel  # noqa: E402

MODULE = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.drop = nn.Dropout(0.5)
    def forward(self, x, scale=None):
        y = self.drop(self.linear(x))
        return y if scale is None else y * scale
"""


def source(folder: Path, body: str, name: str = "model.py") -> str:
    (folder / name).write_text(MODULE + textwrap.dedent(body))
    return f"{folder / name}:factory"


def loaded(text: str, **options: Any) -> Any:
    return load.load(load.parse(text), **options)


# --- factories ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ("Net(), torch.randn(1, 3)", ["x"]),
        ("Net(), (torch.randn(1, 3),)", ["x"]),
        ("Net(), [torch.randn(1, 3), torch.ones(2)]", ["x", "scale"]),
        ("Net(), {'x': torch.randn(1, 3), 'scale': torch.ones(2)}", ["x", "scale"]),
        ("Net(), {'x': torch.randn(1, 3), 'scale': 2.0}", ["x"]),
        ("Net(), torch.randn(1, 3).numpy()", ["x"]),
        ("Net().double(), torch.randn(1, 3).double()", ["x"]),
        ("Net().half(), torch.randn(1, 3).half()", ["x"]),
        ("nn.DataParallel(Net()), torch.randn(1, 3)", ["x"]),
        ("torch.compile(Net()), torch.randn(1, 3)", ["x"]),
        ("torch.export.export(Net().eval(), (torch.randn(1, 3),)), torch.randn(1, 3)", ["x"]),
    ],
)
def test_what_a_factory_may_return(tmp_path: Path, result: str, names: list[str]) -> None:
    model = loaded(source(tmp_path, f"def factory():\n    return {result}"))
    assert isinstance(model, TorchModel)
    assert list(model.example_inputs) == names
    assert all(v.dtype == torch.float32 for v in model.example_inputs.values())
    first, second = (call(model.module, model.example_inputs)["output"] for _ in range(2))
    assert torch.equal(first, second)  # evaluation mode: no dropout
    assert first.dtype == torch.float32


def test_a_factory_may_return_everything(tmp_path: Path) -> None:
    body = """
    from edgekit.types import TorchModel
    def factory():
        return TorchModel(module=Net(), example_inputs={"x": torch.randn(1, 3)}, task="t", labels=("a", "b"),
                          dynamic_axes={"x": {-2: "batch"}}, preprocessing={"scale": 1.0})
    """
    model = loaded(source(tmp_path, body))
    assert (model.task, model.labels, model.dynamic_axes) == ("t", ("a", "b"), {"x": {0: "batch"}})
    assert model.preprocessing == {"scale": 1.0}


@pytest.mark.parametrize("inputs", ["torch.ones(1, 3)", "(torch.ones(1, 3),)", "[torch.ones(1, 3)]"])
def test_a_torch_model_takes_its_inputs_as_a_tuple_of_module_and_inputs_does(
    tmp_path: Path, inputs: str
) -> None:
    whole = f"""
    from edgekit.types import TorchModel
    def factory():
        return TorchModel(module=Net(), example_inputs={inputs})
    """
    named, paired = loaded(source(tmp_path, whole)), f"def factory():\n    return Net(), {inputs}"
    again = loaded(source(tmp_path, paired, "pair.py"))
    assert {k: v.tolist() for k, v in named.example_inputs.items()} == {"x": [[1.0] * 3]}
    assert list(again.example_inputs) == ["x"]


def test_example_inputs_from_the_module_or_the_data(tmp_path: Path) -> None:
    own = "def factory():\n    m = Net()\n    m.example_inputs = torch.randn(1, 3)\n    return m"
    assert list(loaded(source(tmp_path, own)).example_inputs) == ["x"]
    bare = source(tmp_path, "def factory():\n    return Net()", "bare.py")
    assert list(loaded(bare, needs_example=lambda: np.zeros((1, 3), np.float32)).example_inputs) == ["x"]
    with pytest.raises(SourceError, match="without example inputs") as caught:
        loaded(bare)
    assert "x, scale" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "returned nothing"),
        ("return Net", "the class Net"),
        ("return 1, 2, 3", "a tuple of 3"),
        ("return Net(), 5", "are a int"),
        ("return Net(), {'y': torch.randn(1, 3)}", "do not fit forward"),
        ("return Net(), ()", "hold no tensor"),
        ("return Net(), {'x': 3.0}", "hold no tensor|raised"),
    ],
)
def test_what_a_factory_may_not_return(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        loaded(source(tmp_path, f"def factory():\n    {body}"))


def test_outputs_must_be_tensors(tmp_path: Path) -> None:
    body = """
    class Strange(nn.Module):
        def forward(self, x):
            return {"a": x, "b": object()}
    def factory():
        return Strange(), torch.ones(1)
    """
    with pytest.raises(SourceError, match="b is a object"):
        loaded(source(tmp_path, body))


def test_a_factory_that_raises_shows_the_users_frames_only(tmp_path: Path) -> None:
    body = (
        "def helper():\n    raise ValueError('no weights\\nsecond line')\ndef factory():\n    return helper()"
    )
    with pytest.raises(FactoryError) as caught:
        loaded(source(tmp_path, body))
    error = caught.value
    assert "ValueError: no weights" in error.message
    assert "in helper" in error.user_traceback
    assert "in factory" in error.user_traceback
    assert f"edgekit{os.sep}" not in error.user_traceback
    assert isinstance(error.__cause__, ValueError)


@pytest.mark.parametrize(
    "statement", ["import sys; sys.exit(3)", "def broken(:", "import not_a_package_at_all"]
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, statement: str) -> None:
    (tmp_path / "m.py").write_text(statement + "\n")
    with pytest.raises(FactoryError) as caught:
        loaded(f"{tmp_path / 'm.py'}:factory")
    assert caught.value.user_traceback
    assert not [m for m in sys.modules if m.startswith("_edgekit_user_m_")]


def test_a_missing_factory_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        loaded(source(tmp_path, "def factorise():\n    return Net(), torch.ones(1, 3)"))
    assert "factorise" in caught.value.hint
    with pytest.raises(SourceError, match="no module 'not_there'"):
        loaded("not_there.at_all:factory")


def test_siblings_import_and_leave_no_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = list(sys.path)
    for folder, number in (("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "numbers_of_mine.py").write_text(f"VALUE = {number}\n")
        body = """
        import numbers_of_mine
        print("chatter")
        def factory():
            import numbers_of_mine as again
            assert again is numbers_of_mine
            net = Net()
            nn.init.constant_(net.linear.weight, numbers_of_mine.VALUE)
            return net, torch.ones(1, 3)
        """
        model = loaded(source(tmp_path / folder, body))
        assert float(model.module.linear.weight[0, 0]) == number
    assert sys.path == path
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "chatter" in captured.err


def test_a_changed_sibling_is_read_again(tmp_path: Path) -> None:
    text = source(
        tmp_path,
        "from width_of_mine import W\ndef factory():\n    return nn.Linear(3, W), torch.ones(1, 3)",
    )
    for width in (2, 5):
        (tmp_path / "width_of_mine.py").write_text(f"W = {width}\n")
        os.utime(tmp_path / "width_of_mine.py", ns=(width * 10**18, width * 10**18))
        assert loaded(text).module.out_features == width


def test_unseeded_weights_are_the_same_each_time(tmp_path: Path) -> None:
    text = source(tmp_path, "def factory():\n    return Net(), torch.randn(1, 3)")
    one, two = loaded(text), loaded(text)
    assert torch.equal(one.module.linear.weight, two.module.linear.weight)


def test_files_that_a_factory_reads_are_recorded(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "weights.pt")
    body = """
    from pathlib import Path
    import part_of_mine
    def factory():
        net = nn.Linear(3, 2)
        net.load_state_dict(torch.load(Path(__file__).parent / "weights.pt", weights_only=True))
        return net, torch.ones(1, 3)
    """
    (tmp_path / "part_of_mine.py").write_text("")
    text = source(tmp_path, body)
    with load.Recorder() as recorder:
        loaded(text)
    assert {Path(d.name).name for d in recorder.dependencies if d.kind == "file"} == {
        "model.py",
        "part_of_mine.py",
        "weights.pt",
    }


def test_a_module_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").write_text("")
    source(
        tmp_path / "package_of_mine",
        "class Maker:\n    @staticmethod\n    def make():\n        return Net(), torch.ones(1, 3)",
    )
    monkeypatch.chdir(tmp_path)
    assert list(loaded("package_of_mine.model:Maker.make").example_inputs) == ["x"]


# --- .pt2 ---------------------------------------------------------------------------------------------


def program(path: Path, *, dynamic: bool = False) -> str:
    shapes = {"x": {0: torch.export.Dim("n", max=16)}} if dynamic else None
    torch.export.save(
        torch.export.export(
            torch.nn.Linear(3, 2).eval(),
            (torch.randn(2, 3),),
            dynamic_shapes=shapes and {"input": shapes["x"]},
        ),
        path,
    )
    return str(path)


def test_pt2(tmp_path: Path) -> None:
    model = loaded(program(tmp_path / "m.pt2", dynamic=True))
    assert list(model.example_inputs) == ["input"]
    assert model.dynamic_axes == {"input": {0: "batch"}}


def rewritten(path: Path, change: Any) -> str:
    """The archive with ``change(name, bytes)`` applied to every member."""
    out = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item)))
    return str(out)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def evil_inputs(marker: Path) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    torch.save(Evil(marker), buffer)
    return buffer.getvalue()


def test_pt2_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    program(tmp_path / "m.pt2", dynamic=True)

    def edited(old: str, new: str) -> Any:
        return lambda name, data: (
            data.replace(old.encode(), new.encode()) if name.endswith("models/model.json") else data
        )

    changes = [
        lambda name, data: evil_inputs(marker) if "sample_inputs" in name else data,
        edited('"target": "torch.ops.aten.linear.default"', '"target": "torch.os.system"'),
        lambda name, data: (
            data.replace(b'"use_pickle": false', b'"use_pickle": true')
            if name.endswith("_config.json")
            else data
        ),
    ]
    text = zipfile.ZipFile(tmp_path / "m.pt2").read("m/models/model.json").decode()
    expression = next(s for s in text.split('"') if s.startswith("Symbol("))
    changes.append(edited(expression, f"__import__('pathlib').Path('{marker}').touch()"))
    for change in changes:
        with pytest.raises(UntrustedSourceError, match="would execute code") as caught:
            loaded(rewritten(tmp_path / "m.pt2", change))
        assert "--trust" in caught.value.hint
    assert not marker.exists()


@pytest.mark.parametrize("spelling", [str, str.upper])
@pytest.mark.parametrize("first", [True, False])
def test_pt2_with_two_entries_of_one_name_is_refused(spelling: Any, first: bool, tmp_path: Path) -> None:
    """Of these PyTorch's zip library takes the first, Python's the last, and PyTorch's ignores capitals."""
    marker = tmp_path / "executed"
    program(tmp_path / "m.pt2")
    out = tmp_path / "two.pt2"
    with zipfile.ZipFile(tmp_path / "m.pt2") as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            pair = [(item.filename, old.read(item))]
            if item.filename.endswith("model_weights_config.json"):
                folder, _, name = item.filename.rpartition("/")
                evil = old.read(item).replace(b'"use_pickle": false', b'"use_pickle": true')
                pair.insert(0 if first else 1, (f"{folder}/{spelling(name)}", evil))
            elif "/data/weights/weight_" in item.filename:
                pair = [(item.filename, evil_inputs(marker))]
            for name, data in pair:
                new.writestr(zipfile.ZipInfo(name), data)
    with pytest.raises(UntrustedSourceError, match=r"model_weights_config\.json 2 times"):
        loaded(str(out))
    assert not marker.exists()


def test_pt2_is_loaded_from_what_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else another library would find in the file."""
    program(tmp_path / "m.pt2")
    seen: list[Path] = []
    load = torch.export.load
    monkeypatch.setattr(torch.export, "load", lambda path: seen.append(Path(path)) or load(path))
    loaded(str(tmp_path / "m.pt2"))
    assert seen[0] != tmp_path / "m.pt2"
    assert not seen[0].exists()


def test_pt2_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.load.exported._LEAST_LIMIT", 1000)
    program(tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/extra/zeros", bytes(4 << 20))
    with pytest.raises(SourceError, match="unpacks to more than"):
        loaded(str(tmp_path / "m.pt2"))


def test_pt2_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"not a \.pt2 archive"):
        loaded(str(tmp_path / "m.pt2"))


# --- .pt ----------------------------------------------------------------------------------------------


def test_pickles(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(SourceError, match="a state dict of 2 tensors") as caught:
        loaded(str(path))
    assert "factory" in caught.value.hint
    torch.save(torch.nn.Linear(3, 2), path)
    with pytest.raises(UntrustedSourceError, match="can execute any program"):
        loaded(str(path))
    model = loaded(str(path), trust=True, needs_example=torch.ones(1, 3))
    assert list(model.example_inputs) == ["input"]
    torch.save(Evil(tmp_path / "executed"), path)
    with pytest.raises(UntrustedSourceError):
        loaded(str(path))
    assert not (tmp_path / "executed").exists()


# --- .onnx --------------------------------------------------------------------------------------------


def onnx_model(path: Path, *, location: str = "", data: bool = True) -> str:
    weights = np.ones((3, 2), np.float32)
    tensor = onnx.numpy_helper.from_array(weights, "w")
    if location:
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        if data and not Path(location).is_absolute():
            (path.parent / location).write_bytes(weights.tobytes())
    inputs = [onnx.helper.make_tensor_value_info("x", 1, ["n", 3])]
    outputs = [onnx.helper.make_tensor_value_info("y", 1, ["n", 2])]
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [tensor]
    )
    made = onnx.helper.make_model(body, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return str(path)


def test_onnx(tmp_path: Path) -> None:
    plain = loaded(onnx_model(tmp_path / "a.onnx"))
    assert isinstance(plain, OnnxModel)
    assert (plain.opset, plain.inputs[0].shape, plain.outputs[0].shape) == (18, ("n", 3), ("n", 2))
    outside = loaded(onnx_model(tmp_path / "b.onnx", location="b.bin"))
    assert outside.sha256 != plain.sha256
    (tmp_path / "b.bin").write_bytes(np.zeros((3, 2), np.float32).tobytes())
    assert loaded(str(tmp_path / "b.onnx")).sha256 != outside.sha256
    copied = io.save(io.load(tmp_path / "b.onnx"), tmp_path / "copy" / "c.onnx")
    assert io.external_files(copied.path) == ()


@pytest.mark.parametrize("location", ["/etc/hostname", "../w.bin", "sub/../../w.bin", "..\\w.bin"])
def test_external_data_may_not_leave_the_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 24)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    with pytest.raises(UntrustedSourceError, match="outside the model's folder"):
        loaded(onnx_model(tmp_path / "in" / "a.onnx", location=location, data=False))


def test_external_data_may_not_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 24)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(UntrustedSourceError, match="link"):
        loaded(onnx_model(tmp_path / "in" / "a.onnx", location="w.bin", data=False))


def test_external_data_must_be_there(tmp_path: Path) -> None:
    text = onnx_model(tmp_path / "a.onnx", location="w.bin", data=False)
    with pytest.raises(SourceError, match="is missing"):
        loaded(text)
    (tmp_path / "w.bin").write_bytes(b"\0" * 5)
    made = onnx.load(text, load_external_data=False)
    entry = made.graph.initializer[0].external_data.add()
    entry.key, entry.value = "length", "24"
    (tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(SourceError, match="cut short"):
        loaded(text)


@pytest.mark.parametrize("data", [b"", b"nothing", b"\x08\x0a" * 50, b"\xff" * 100])
def test_what_is_no_onnx(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(SourceError):
        loaded(str(tmp_path / "a.onnx"))


def test_invalid_onnx(tmp_path: Path) -> None:
    text = onnx_model(tmp_path / "a.onnx")
    made = onnx.load(text)
    made.graph.node[0].op_type = "NoSuchOperator"
    (tmp_path / "a.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(SourceError, match="not a valid ONNX model"):
        loaded(text)


# --- Hugging Face -------------------------------------------------------------------------------------


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        id2label={0: "no", 1: "yes"},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_hugging_face(bert: Path) -> None:
    before = dict(os.environ)
    model = loaded(f"hf:{bert}")
    assert {k: v for k, v in os.environ.items() if k.startswith(("HF_", "TRANSFORMERS_", "TQDM_"))} == {
        k: v for k, v in before.items() if k.startswith(("HF_", "TRANSFORMERS_", "TQDM_"))
    }
    assert list(model.example_inputs) == ["input_ids", "attention_mask"]
    assert model.dynamic_axes["input_ids"] == {0: "batch", 1: "sequence"}
    assert (model.task, model.labels) == ("text-classification", ("no", "yes"))
    assert list(call(model.module, model.example_inputs)) == ["logits"]


def test_hugging_face_does_not_run_code(bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}))
    with pytest.raises(UntrustedSourceError, match="its own Python code"):
        loaded(f"hf:{bert}")
    (bert / "config.json").write_text(json.dumps(config))
    (bert / "model.safetensors").unlink()
    torch.save({}, bert / "pytorch_model.bin")
    with pytest.raises(UntrustedSourceError, match="no safetensors"):
        loaded(f"hf:{bert}")
    (bert / "pytorch_model.bin").unlink()
    with pytest.raises(SourceError, match="has no weights"):
        loaded(f"hf:{bert}")


def test_a_hub_name_needs_the_network() -> None:
    with pytest.raises(SourceError, match="network is not to be used"):
        loaded("hf:nobody/nothing")


# --- TensorFlow ---------------------------------------------------------------------------------------


def data(name: str) -> Path:
    root = Path(os.environ.get("EDGEKIT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"needs {name} in EDGEKIT_DATA")
    return root / name


@pytest.mark.slow
@pytest.mark.data
def test_keras_file() -> None:
    pytest.importorskip("tf2onnx")
    model = loaded(str(data("mlperf_tiny/pretrainedResnet.h5")))
    (image,) = model.inputs
    assert (image.shape, image.layout) == (("batch", 32, 32, 3), "NHWC")
    assert model.outputs[0].shape == ("batch", 10)
    probabilities = io.run(io.session(model.path), {image.name: np.zeros((1, 32, 32, 3), np.float32)})
    np.testing.assert_allclose(sum(v.sum() for v in probabilities.values()), 1, rtol=1e-5)


def test_without_tensorflow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from edgekit.errors import MissingExtraError

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "tensorflow" else find(n, *a))
    (tmp_path / "m.keras").write_bytes(b"")
    with pytest.raises(MissingExtraError) as caught:
        loaded(str(tmp_path / "m.keras"))
    assert "[tensorflow]" in caught.value.hint


@pytest.mark.slow
def test_a_damaged_keras_file_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    (tmp_path / "m.keras").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="cannot be converted"):
        loaded(str(tmp_path / "m.keras"))


# --- modules in memory --------------------------------------------------------------------------------


def test_from_module_with_dataclass_outputs() -> None:
    @dataclasses.dataclass
    class Out:
        a: Any
        b: Any

    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Out:
            return Out(x + 1, [x, None, 3])

    model = load.from_module(Net(), torch.ones(1, 3))
    assert list(call(model.module, model.example_inputs)) == ["a", "b_0"]


def test_a_file_that_changes_within_a_second_is_read_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same length, same second: Python's own cache would give the old one."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for width in (2, 5):
        text = source(tmp_path, f"def factory():\n    return nn.Linear(3, {width}), torch.ones(1, 3)")
        os.utime(text.partition(":")[0], ns=(10**18 + width, 10**18 + width))
        assert loaded(text).module.out_features == width
