"""What bad input gets: the exit code, a message that names the culprit, a hint, and nothing half-written."""

from __future__ import annotations

import pytest
from cli_process import edgekit

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("bad-input")]


@pytest.fixture
def sources(root):
    return f"{root}/tests/e2e/sources.py"


def refused(code, *argv, words=(), **more):
    result = edgekit(*argv, **more)
    assert result.code == code, result.err
    assert "Traceback (most recent call last)" not in result.err or code == 3
    assert "hint:" in result.err
    for word in words:
        assert word in result.err, result.err
    return result


def test_an_unknown_target_offers_the_nearest(sources, tmp_path):
    refused(
        2, "build", f"{sources}:tiny", "-t", "tflite-in8", "-o", tmp_path, words=["tflite-in8", "tflite-int8"]
    )


def test_no_target(sources, tmp_path):
    refused(2, "build", f"{sources}:tiny", "-o", tmp_path, words=["--target"])


def test_int8_without_calibration(sources, tmp_path):
    refused(2, "build", f"{sources}:tiny", "-t", "ort-int8", "-o", tmp_path, words=["--calib", "random"])
    assert list(tmp_path.iterdir()) == []


def test_a_factory_that_raises_shows_the_users_traceback(sources, tmp_path):
    result = refused(
        3,
        "build",
        f"{sources}:raising",
        "-t",
        "ort-fp32",
        "-o",
        tmp_path,
        words=["the weights are in the other office"],
    )
    assert "helper_that_raises" in result.err
    assert "edgekit/load" not in result.err
    assert "edgekit/usercode" not in result.err


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{sources}:tinny", ["tiny"]),
        ("{folder}/sourcs.py:tiny", ["sources.py"]),
        ("no/such/model.onnx", ["no/such"]),
        ("{folder}", ["SavedModel"]),
        ("no_such_module:factory", ["no_such_module"]),
    ],
)
def test_a_source_that_is_not_there(sources, root, source, words, tmp_path):
    text = source.format(sources=sources, folder=root / "tests/e2e")
    refused(3, "build", text, "-t", "ort-fp32", "-o", tmp_path, words=words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("wrong_shape", ["sample 3", "(1, 7)"]),
        ("wrong_dtype", ["sample 0"]),
        ("nothing", ["no sample"]),
        ("not_a_number", ["sample 2", "NaN"]),
    ],
)
def test_bad_calibration_data_names_the_sample(sources, data, words, tmp_path):
    refused(
        2,
        "build",
        f"{sources}:tiny",
        "-t",
        "ort-int8",
        "--calib",
        f"{sources}:{data}",
        "-o",
        tmp_path,
        words=words,
    )
    assert list(tmp_path.iterdir()) == []


def test_calibration_data_of_the_wrong_scale_is_refused_unless_accepted(sources, tmp_path):
    argv = (
        "build", f"{sources}:tiny", "-t", "ort-int8", "--calib", f"{sources}:bright", "--eval", f"{sources}:plain",
        "-o", tmp_path, "--json",
    )  # fmt: skip
    result = edgekit(*argv)
    assert result.code == 2, result.err
    for word in ("255", "'x'", "--accept-data"):
        assert word in result.err
    accepted = edgekit(*argv, "--accept-data", "scale")
    assert accepted.code == 5  # ranges that wide leave INT8 nothing to tell values apart with
    assert any("255" in f for f in accepted.json["targets"][0]["manifest"]["calibration"]["findings"])


def test_operators_that_the_target_lacks_are_named_at_once(tmp_path):
    """Two Unique nodes: how many values come out is known at run time only, which no LiteRT file can say."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Unique", ["x"], ["near"], name="first/Unique", sorted=1),
        helper.make_node("Neg", ["x"], ["negative"], name="Neg"),
        helper.make_node("Unique", ["negative"], ["far"], name="second/Unique", sorted=1),
    ]
    shapes = {"x": [8], "near": ["n"], "far": ["m"]}
    values = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()}
    graph = helper.make_graph(nodes, "unique", [values["x"]], [values["near"], values["far"]])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "m.onnx",
    )
    out = tmp_path / "out"
    result = edgekit("build", tmp_path / "m.onnx", "-t", "tflite-fp32,ort-fp32", "-o", out)
    assert result.code == 4, result.err
    for word in ("2 operators", "first/Unique", "second/Unique", "ort-fp32"):
        assert word in result.err
    assert [p.name for p in out.iterdir()] == ["ort-fp32"]  # the others finish


def test_an_unknown_setting_offers_the_nearest(sources, tmp_path):
    refused(
        2,
        "build",
        f"{sources}:tiny",
        "-t",
        "ort-fp32",
        "--set",
        "ort_fromat=true",
        "-o",
        tmp_path,
        words=["ort_format"],
    )


def test_example_inputs_come_from_the_calibration_data(sources, tmp_path):
    result = edgekit(
        "build", f"{sources}:without_example", "-t", "ort-int8", "--calib", f"{sources}:wide", "-o", tmp_path
    )
    assert result.code == 0, result.err


def test_random_calibration_is_marked(sources, tmp_path):
    result = edgekit(
        "build", f"{sources}:tiny", "-t", "ort-int8", "--calib", "random", "-o", tmp_path, "--json"
    )
    assert result.code == 0, result.err
    assert result.json["targets"][0]["manifest"]["calibration"]["calibrated"] is False


def test_an_output_folder_that_cannot_be_written(sources, tmp_path):
    (tmp_path / "file").write_text("")
    refused(
        2,
        "build",
        f"{sources}:tiny",
        "-t",
        "ort-fp32",
        "-o",
        tmp_path / "file/out",
        words=["cannot write", "--out"],
    )


def test_an_engine_without_a_gpu_is_not_run_and_never_passed(sources, tmp_path):
    argv = ("build", f"{sources}:tiny", "-t", "tensorrt-rtx-fp16", "-o", tmp_path, "--json")
    result = edgekit(*argv)
    if result.code == 0:
        pytest.skip("this machine has an NVIDIA GPU")
    if "not installed" in result.err:
        pytest.skip("TensorRT-RTX is not installed")
    assert result.code == 6
    assert result.json["targets"][0]["status"] == "not-run"
    assert edgekit(*argv, "--allow-not-run").code == 0


def test_json_errors_are_json(sources, tmp_path):
    result = edgekit("build", f"{sources}:tiny", "-t", "nope", "-o", tmp_path, "--json")
    assert result.code == 2
    assert result.json["error"]["type"] == "UnknownNameError"


def test_data_that_do_not_fit_or_change_are_no_silence(sources, tmp_path):
    text = [f"{sources}:text", "-t", "tflite-fp32", "-o", tmp_path]
    lengths = ["--eval", f"{sources}:sentences"]
    refused(2, "build", *text, *lengths, words=["of 40 samples have others", "--shape ids=1x19"])
    padded = edgekit("build", *text, *lengths, "--sequence-length", 20)
    assert padded.code == 0, padded.err
    refused(2, "build", *text, "--shape", "idz=1x20", words=["idz", "ids"])
    refused(2, "build", *text, "--eval", f"{sources}:unseeded", words=["other samples each time"])
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.npz").write_bytes(b"PK\x03\x04")
    refused(2, "build", *text, "--eval", tmp_path / "rows", words=["a.npz cannot be read"])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ('resize = [16, 16]\ninput = "zzz"', ["no input 'zzz'", "one of: image"]),
        ('layout = "NHWC"', ["layout = 'NHWC'", "image: float32["]),
        ("resize = [64, 64]", ["resize = [64, 64]", "image: float32["]),
        ('color = "gray"', ["color = 'gray'"]),
        ("mean = [1e300]\nstd = [1e-11]", ["mean = [1e+300]"]),
    ],
)
def test_preprocessing_that_does_not_fit_the_model(table, words, sources, tmp_path):
    (tmp_path / "edgekit.toml").write_text(f"[preprocessing]\n{table}\n")
    argv = ("build", f"{sources}:detector", "-t", "ort-fp32", "-o", tmp_path / "out")
    refused(2, *argv, words=words, cwd=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_sources_own_contract_that_does_not_fit_is_said(root, tmp_path):
    (tmp_path / "own.py").write_text(
        f"import sys\nsys.path.insert(0, {str(root / 'tests/e2e')!r})\n"
        "import sources\nfrom edgekit.types import TorchModel\n"
        "def model():\n"
        "    module, image = sources.detector()\n"
        "    own = {'resize': [64, 64]}\n"
        "    return TorchModel(module=module, example_inputs={'image': image}, preprocessing=own)\n"
    )
    done = edgekit("build", "own.py:model", "-t", "ort-fp32", "-o", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "the source's own preprocessing: resize = [64, 64] does not fit the model" in done.err
