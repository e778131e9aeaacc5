"""Post-processing in JavaScript, Java and C against Python's, on drawn outputs; a changed contract is found."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import package_models as models
import package_support as support
import package_tools as tools
import pytest
from package_core import compile_core, link_options, self_test
from package_jvm import javac, run

from edgekit.artifact.manifest import Artifact
from edgekit.errors import UsageError
from edgekit.package import PackageSpec, android_contract, ios_spm, package, postprocess, verify_bundle
from edgekit.package.descriptor import Descriptor, read
from edgekit.package.postprocess import apply
from edgekit.preprocess.postprocessing import Postprocessing
from edgekit.types import TensorSpec

TEMPLATES = Path(__file__).parents[2] / "targets"
CELLS = 60
PARTS = (
    TensorSpec(name="scores", dtype="float32", shape=(1, CELLS, 4)),
    TensorSpec(name="corners", dtype="float32", shape=(1, CELLS, 4)),
)
BOTH = (TensorSpec(name="all", dtype="float32", shape=(1, 7, CELLS)),)
ROWS = (TensorSpec(name="rows", dtype="int8", shape=(1, 5, 6), scale=0.07, zero_point=3),)


def boxes(**fields: object) -> Postprocessing:
    return Postprocessing(**{"kind": "boxes", "output": "scores", "boxes": "corners", **fields})


CASES = [
    (Postprocessing(kind="softmax", output="rows"), ROWS),
    (Postprocessing(kind="sigmoid", output="rows"), ROWS),
    (Postprocessing(kind="none", output="rows"), ROWS),
    (boxes(activation="softmax", background=0, min_score=0.3, max_overlap=0.3), PARTS),
    (boxes(box_format="yxyx", activation="sigmoid", size=(30.0, 50.0), most=5), PARTS),
    (boxes(box_format="cxcywh", min_score=0.9, max_overlap=1.0), PARTS),
    (boxes(output="all", boxes="all", box_format="cxcywh", columns=True, activation="sigmoid"), BOTH),
    (boxes(min_score=1.0), PARTS),
]


def drawn(specs: tuple[TensorSpec, ...], seed: int) -> dict[str, np.ndarray]:
    """Outputs of a model that never was: boxes that cover one another, scores with ties."""
    generator = np.random.default_rng(seed)
    found = {}
    for spec in specs:
        if spec.dtype == "int8":
            found[spec.name] = generator.integers(-128, 128, spec.shape).astype(np.int8)
            continue
        values = generator.uniform(0, 30, spec.shape)
        if spec.name == "corners":
            values[..., 2:] += values[..., :2]
        if spec.name == "scores":
            values = np.rint(generator.normal(size=spec.shape) * 4) / 4
        if spec.name == "all":
            values[:, 4:] = generator.normal(size=(1, 3, CELLS)) * 2
        found[spec.name] = values.astype(np.float32)
    return found


def real(specs: tuple[TensorSpec, ...], outputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    zero = [(o.zero_point or 0, 1.0 if o.scale is None else o.scale) for o in specs]
    arrays = (outputs[s.name].astype("f8") for s in specs)
    return [((a - z) * s).astype(np.float32) for a, (z, s) in zip(arrays, zero, strict=True)]


def check(index: int, got: np.ndarray) -> None:
    contract, specs = CASES[index]
    want = apply(contract, specs, drawn(specs, index)).reshape(-1)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=postprocess.CLOSE)


def test_the_drawn_outputs_say_something() -> None:
    counts = [len(apply(contract, specs, drawn(specs, i))) for i, (contract, specs) in enumerate(CASES)]
    # The detectors find some, less than all candidates, as many as are asked for, and none.
    assert all(2 <= n < CELLS for n in counts[3:7]), counts
    assert counts[4] == 5
    assert counts[7] < counts[3]


JAVASCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { postprocess } from "./postprocess.mjs";
const { contract, outputs } = JSON.parse(readFileSync("job", "utf8"));
const real = Object.fromEntries(
  Object.entries(outputs).map(([name, o]) => [name, { data: Float32Array.from(o.data), shape: o.shape }]));
writeFileSync("found", new Uint8Array(Float64Array.from(postprocess(contract, real)).buffer));
"""


@pytest.mark.parametrize("index", range(len(CASES)))
def test_javascript_gives_what_python_gives(index: int, tmp_path: Path) -> None:
    tools.need("node")
    contract, specs = CASES[index]
    shutil.copy(TEMPLATES / "common/package/web/postprocess.js", tmp_path / "postprocess.mjs")
    (tmp_path / "replay.mjs").write_text(JAVASCRIPT)
    arrays = real(specs, drawn(specs, index))
    outputs = {
        s.name: {"data": a.reshape(-1).tolist(), "shape": a.shape} for s, a in zip(specs, arrays, strict=True)
    }
    fields = {f: getattr(contract, f) for f in contract.__dataclass_fields__}
    (tmp_path / "job").write_text(json.dumps({"contract": fields, "outputs": outputs}))
    subprocess.run(["node", "replay.mjs"], cwd=tmp_path, check=True)
    check(index, np.fromfile(tmp_path / "found", np.float64))


JAVA = """
package com.example.digits;

import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.PrintStream;
import java.util.ArrayList;
import java.util.List;

public final class Replay {{
{functions}
    public static void main(String[] names) throws Exception {{
        DataInputStream in = new DataInputStream(new FileInputStream("in"));
        OutputContract[] contracts = {{ {contracts} }};
        PrintStream out = new PrintStream("out");
        for (OutputContract contract : contracts) {{
            int[][] shapes = new int[in.readInt()][];
            float[][] values = new float[shapes.length][];
            for (int k = 0; k < shapes.length; k++) {{
                shapes[k] = new int[] {{in.readInt(), in.readInt(), in.readInt()}};
                values[k] = new float[shapes[k][0] * shapes[k][1] * shapes[k][2]];
                for (int i = 0; i < values[k].length; i++) {{
                    values[k][i] = in.readFloat();
                }}
            }}
            Postprocessor p = new Postprocessor(contract);
            int last = shapes.length - 1;
            double[] found = contract.givesBoxes()
                    ? Postprocessor.flat(p.boxes(values[last], shapes[last], values[0], shapes[0]))
                    : p.scores(values[0], shapes[0][2]);
            StringBuilder line = new StringBuilder();
            for (double v : found) {{
                line.append(v).append(' ');
            }}
            out.println(line);
        }}
        out.close();
    }}
}}
"""


def test_java_gives_what_python_gives(tmp_path: Path) -> None:
    tools.need("javac", "java")
    functions, work = [], b""
    for i, (contract, specs) in enumerate(CASES):
        text = "\n".join(android_contract.result_function(contract))
        functions.append(
            text.replace("private static OutputContract result()", f"static OutputContract c{i}()")
        )
        arrays = real(specs, drawn(specs, i))
        work += np.array(len(arrays), ">i4").tobytes()
        for array in arrays:
            work += np.array(array.shape, ">i4").tobytes() + array.astype(">f4").tobytes()
    (tmp_path / "in").write_bytes(work)
    source = JAVA.format(
        functions="\n".join(functions), contracts=", ".join(f"c{i}()" for i in range(len(CASES)))
    )
    (tmp_path / "Replay.java").write_text(source)
    for name in ("OutputContract", "Postprocessor"):
        template = TEMPLATES / "common/package/android-aar/src" / f"{name}.java"
        (tmp_path / f"{name}.java").write_text(template.read_text().replace("@ID@", "com.example.digits"))
    classes = javac(sorted(tmp_path.glob("*.java")), [tmp_path], tmp_path / "classes", "8")
    run("java", "-cp", classes, "com.example.digits.Replay", cwd=tmp_path)
    for i, line in enumerate((tmp_path / "out").read_text().splitlines()):
        check(i, np.array(line.split(), np.float64))


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swift")
    spec = PackageSpec(format="ios-spm", name="com.example.digits", version="1.0.0")
    return package(support.onnx_artifact(root / "artifact"), spec, root / "out").directory


@pytest.mark.parametrize("index", range(len(CASES)))
def test_c_gives_what_python_gives(index: int, swift: Path, tmp_path: Path) -> None:
    contract, specs = CASES[index]
    described: Descriptor = replace(
        read(swift / "Sources/Digits/assets/edgekit.json"), postprocessing=contract, outputs=specs
    )
    core = tmp_path / "core"
    shutil.copytree(swift / "Sources/DigitsCore", core)
    (core / "contract.c").write_bytes(ios_spm.contract_source(described))
    library = tmp_path / "core.so"
    sources = [core / "postprocess.c", core / "contract.c"]
    compile_core(core, library, "-I", core, "-shared", "-fPIC", *sources)
    loaded = ctypes.CDLL(str(library))
    for name in ("result", "result_size"):
        getattr(loaded, f"com_example_digits_{name}").restype = ctypes.c_size_t
    arrays = real(specs, drawn(specs, index))
    pointers = (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
    found = np.zeros(loaded.com_example_digits_result_size(), np.float64)
    size = ctypes.c_size_t(len(found))
    total = loaded.com_example_digits_result(pointers, found.ctypes.data_as(ctypes.c_void_p), size)
    check(index, found[:total])
    assert loaded.com_example_digits_result(pointers, found.ctypes.data_as(ctypes.c_void_p), 0) == 0


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """An artifact whose scores are logits, and its labels."""
    root = tmp_path_factory.mktemp("logits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "models-cache"))
        artifact = models.build("logits", root / "source", ("ort-fp32",))
    return artifact, models.package_options("logits", artifact, root)["labels"]


def test_a_second_softmax_is_refused(tmp_path: Path) -> None:
    spec = PackageSpec(format="bundle", name="com.example.digits", version="1.0.0", postprocess="softmax")
    with pytest.raises(UsageError, match="softmax already"):
        package(support.onnx_artifact(tmp_path / "artifact"), spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_package_of_logits_says_softmax_and_a_changed_contract_is_found(
    logits: tuple[Artifact, Path], tmp_path: Path
) -> None:
    artifact, labels = logits
    spec = PackageSpec(format="bundle", name="com.example.logits", version="1.0.0", labels=labels)
    (out,) = (p for p in package(artifact, spec, tmp_path / "out").directory.iterdir() if p.is_dir())
    described = json.loads((out / "edgekit.json").read_text())
    assert described["postprocessing"]["kind"] == "softmax"
    assert "softmax" in (out / "README.md").read_text()
    (case, *_) = described["golden"]["cases"]
    stored = np.fromfile(out / case["outputs"][0]["file"], np.float32).astype("f8")
    result = np.fromfile(out / case["result"]["file"], np.float32)
    assert stored.sum() != pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(result, np.exp(stored) / np.exp(stored).sum(), atol=1e-6)
    assert verify_bundle(out).passed
    described["postprocessing"]["kind"] = "sigmoid"
    (out / "edgekit.json").write_text(json.dumps(described))
    # The sums are made again, as somebody who changes a bundle would.
    sums = [line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()]
    lines = subprocess.run(["sha256sum", *sums], cwd=out, capture_output=True, text=True, check=True).stdout
    (out / "SHA256SUMS").write_text(lines)
    report = verify_bundle(out)
    assert not report.passed
    assert "post-processing" in report.cases[0].message


def test_the_self_test_finds_another_contract(logits: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, labels = logits
    spec = PackageSpec(format="ios-spm", name="com.example.logits", version="1.0.0", labels=labels)
    out = package(artifact, spec, tmp_path / "out").directory
    core, assets = out / "Sources/LogitsCore", out / "Sources/Logits/assets"
    source = (core / "contract.c").read_text()
    assert source.count(".kind = EK_SOFTMAX") == 1
    for kind, passes in (("EK_SOFTMAX", True), ("EK_NONE", False)):
        (core / "contract.c").write_text(source.replace(".kind = EK_SOFTMAX", f".kind = {kind}"))
        work = tmp_path / kind
        work.mkdir()
        compile_core(core, work / "run", *link_options(core, "com_example_logits", work))
        done = self_test(work / "run", assets)
        assert (done.returncode == 0) == passes, done.stdout
        assert ("post-processing" in done.stdout) != passes


CLASSIFY = """
import android.content.res.AssetManager;
import com.example.logits.Category;
import com.example.logits.LogitsModel;

public final class Classify {
    public static void main(String[] arguments) throws Exception {
        LogitsModel model = LogitsModel.load(new AssetManager(arguments[0]), com.example.logits.Accelerator.CPU);
        for (Category c : model.classify(new byte[40 * 50 * 3], 50, 40, 12)) {
            System.out.println(c.index + " " + c.label + " " + c.score);
        }
        try {
            model.detect(new byte[3], 1, 1);
        } catch (IllegalStateException e) {
            System.out.println(e.getMessage());
        }
        System.exit(0);
    }
}
"""


def test_classify_gives_probabilities_on_the_jvm(logits: tuple[Artifact, Path], tmp_path: Path) -> None:
    tools.need("javac", "java", "jar", tools.ORT_JVM)
    from package_jvm import host_classes

    artifact, labels = logits
    spec = PackageSpec(format="android-aar", name="com.example.logits", version="1.0.0", labels=labels)
    (aar,) = package(artifact, spec, tmp_path / "out").directory.rglob("*.aar")
    shutil.unpack_archive(aar, tmp_path / "aar", "zip")
    jar, host = tmp_path / "aar/classes.jar", host_classes("onnxruntime", tmp_path)
    (tmp_path / "Classify.java").write_text(CLASSIFY)
    classes = javac([tmp_path / "Classify.java"], [jar, *host], tmp_path / "classes", "8")
    run("jar", "c0Mf", tmp_path / "assets.apk", "assets", cwd=tmp_path / "aar")
    joined = os.pathsep.join(map(str, [classes, jar, *host]))
    lines = run("java", "-cp", joined, "Classify", tmp_path / "assets.apk", cwd=tmp_path).splitlines()
    rows = [line.rsplit(" ", 1) for line in lines[:12]]
    scores = [float(score) for _, score in rows]
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    assert scores == sorted(scores, reverse=True)
    assert all(label == f"{label.split(' ')[0]} thing {label.split(' ')[0]}" for label, _ in rows)
    assert "gives no boxes; use classify()" in lines[12]
