"""Boxes in the pixels of the picture that an app has: JavaScript, Java and C against Python, and against the golden
vectors of a detector; a contract that puts them elsewhere is found."""

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
from package_jvm import host_classes, javac, run

from edgekit.artifact.manifest import Artifact
from edgekit.package import PackageSpec, android_contract, ios_spm, package, verify_bundle
from edgekit.package.descriptor import Descriptor, GoldenCase, read
from edgekit.preprocess.frame import frame
from edgekit.preprocess.postprocessing import Postprocessing

TEMPLATES = Path(__file__).parents[2] / "targets"
CASES = [(contract, height, width) for contract in support.CONTRACTS for height, width in support.IMAGE_SIZES]
ROWS = np.random.default_rng(5).uniform(-0.3, 1.3, (7, 6))
"""Class, score and corners, some of them outside."""

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("package-boxes")]


def wanted() -> np.ndarray:
    found = []
    for contract, height, width in CASES:
        corners = frame(contract, height, width).in_image(ROWS[:, 2:])
        found.append(np.concatenate([ROWS[:, :2], corners], -1))
    return np.array(found)


JAVASCRIPT = """
import { readFileSync, writeFileSync } from "node:fs";
import { placed } from "./postprocess.mjs";
import { frame } from "./preprocess.mjs";
const { rows, jobs } = JSON.parse(readFileSync("job", "utf8"));
const found = jobs.flatMap(([contract, height, width]) => {
  const image = { height, width };
  return placed(rows, frame(contract, image), image);
});
writeFileSync("found", new Uint8Array(Float64Array.from(found).buffer));
"""


def test_javascript_places_boxes_as_python_does(tmp_path: Path) -> None:
    tools.need("node")
    for name in ("postprocess", "preprocess"):
        shutil.copy(TEMPLATES / f"common/package/web/{name}.js", tmp_path / f"{name}.mjs")
    (tmp_path / "replay.mjs").write_text(JAVASCRIPT)
    jobs = [(contract.to_mapping(), height, width) for contract, height, width in CASES]
    (tmp_path / "job").write_text(json.dumps({"rows": ROWS.reshape(-1).tolist(), "jobs": jobs}))
    subprocess.run(["node", "replay.mjs"], cwd=tmp_path, check=True)
    found = np.fromfile(tmp_path / "found", np.float64).reshape(len(CASES), *ROWS.shape)
    np.testing.assert_allclose(found, wanted(), rtol=1e-12)


JAVA = """
package com.example.digits;

import java.util.ArrayList;
import java.util.List;

public final class Replay {{
{functions}
    static ImageContract[] CONTRACTS = {{ {contracts} }};
    static int[][] IMAGES = {{ {images} }};
    static double[][] ROWS = {{ {rows} }};

    public static void main(String[] names) {{
        List<double[]> rows = new ArrayList<>();
        for (double[] row : ROWS) {{
            rows.add(row);
        }}
        for (ImageContract contract : CONTRACTS) {{
            for (int[] image : IMAGES) {{
                int[] frame = Preprocessor.frame(contract, image[0], image[1]);
                for (double v : Postprocessor.flat(Postprocessor.placed(rows, frame, image[0], image[1]))) {{
                    System.out.println(v);
                }}
            }}
        }}
    }}
}}
"""


def test_java_places_boxes_as_python_does(tmp_path: Path) -> None:
    tools.need("javac", "java")
    functions = []
    for i, contract in enumerate(support.CONTRACTS):
        text = "\n".join(android_contract.image_function(contract))
        functions.append(text.replace("private static ImageContract image()", f"static ImageContract c{i}()"))
    source = JAVA.format(
        functions="\n".join(functions),
        contracts=", ".join(f"c{i}()" for i in range(len(functions))),
        images=", ".join(f"{{{h}, {w}}}" for h, w in support.IMAGE_SIZES),
        rows=", ".join(f"{{{', '.join(map(repr, row.tolist()))}}}" for row in ROWS),
    )
    (tmp_path / "Replay.java").write_text(source)
    for name in ("ImageContract", "OutputContract", "Postprocessor", "Preprocessor", "Tensor", "TensorSpec"):
        template = TEMPLATES / "common/package/android-aar/src" / f"{name}.java"
        (tmp_path / f"{name}.java").write_text(template.read_text().replace("@ID@", "com.example.digits"))
    classes = javac(sorted(tmp_path.glob("*.java")), [tmp_path], tmp_path / "classes", "8")
    lines = run("java", "-cp", classes, "com.example.digits.Replay", cwd=tmp_path).split()
    found = np.array(lines, np.float64).reshape(len(CASES), *ROWS.shape)
    np.testing.assert_allclose(found, wanted(), rtol=1e-12)


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swift")
    spec = PackageSpec(format="ios-spm", name="com.example.digits", version="1.0.0")
    return package(support.onnx_artifact(root / "artifact"), spec, root / "out").directory


def test_c_places_boxes_as_python_does(swift: Path, tmp_path: Path) -> None:
    found = []
    for i, contract in enumerate(support.CONTRACTS):
        described: Descriptor = replace(
            read(swift / "Sources/Digits/assets/edgekit.json"),
            preprocessing=contract,
            inputs=(support.image_spec(contract),),
        )
        described = replace(
            described,
            postprocessing=Postprocessing(
                kind="boxes", output=described.outputs[0].name, boxes=described.outputs[0].name
            ),
        )
        core = tmp_path / f"core-{i}"
        shutil.copytree(swift / "Sources/DigitsCore", core)
        (core / "contract.c").write_bytes(ios_spm.contract_source(described))
        sources = [core / "preprocess.c", core / "postprocess.c", core / "contract.c"]
        compile_core(core, tmp_path / f"{i}.so", "-I", core, "-shared", "-fPIC", *sources)
        loaded = ctypes.CDLL(str(tmp_path / f"{i}.so"))
        for height, width in support.IMAGE_SIZES:
            rows = ROWS.copy()
            pointer = rows.ctypes.data_as(ctypes.c_void_p)
            assert loaded.com_example_digits_place(height, width, pointer, ctypes.c_size_t(rows.size)) == 1
            found.append(rows)
        assert loaded.com_example_digits_place(0, 5, pointer, ctypes.c_size_t(6)) == 0
    np.testing.assert_allclose(found, wanted(), rtol=1e-12)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, dict]:
    """An artifact that finds boxes, and what its packages are told."""
    root = tmp_path_factory.mktemp("detector")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "models-cache"))
        artifact = models.build("detect", root / "source", ("ort-fp32",))
    return artifact, models.package_options("detect", artifact, root)


def spec(form: str, options: dict) -> PackageSpec:
    return PackageSpec(format=form, name="com.example.detect", version="1.0.0", **options)


def placed(folder: Path, case: GoldenCase) -> np.ndarray:
    assert case.placed is not None
    return np.fromfile(folder / case.placed.file, np.float32).reshape(-1, 6)


def test_a_package_has_boxes_in_the_pixels_of_its_images(
    detector: tuple[Artifact, dict], tmp_path: Path
) -> None:
    artifact, options = detector
    (out,) = (
        p
        for p in package(artifact, spec("bundle", options), tmp_path / "o").directory.iterdir()
        if p.is_dir()
    )
    described = read(out / "edgekit.json")
    drawn = [c for c in described.golden.cases if c.image is not None and c.name.startswith("drawn")]
    assert len(drawn) == 2
    contract = described.preprocessing
    assert contract is not None
    assert (contract.resize, contract.crop) == (36, (32, 32))
    for case in drawn:
        assert case.image is not None
        shares = np.fromfile(out / case.result.file, np.float32).reshape(-1, 6)
        pixels = placed(out, case)
        assert len(pixels) >= 2
        assert pixels[:, 2:].max() > 1
        # The shorter edge becomes 36 and the middle 32 are seen: worked out here once more.
        scale = 36 / min(case.image.height, case.image.width)
        for axis, length in ((0, case.image.width), (1, case.image.height)):
            margin = (int(length * scale) - 32) // 2
            for k in (2 + axis, 4 + axis):
                want = (shares[:, k] * 32 + margin) * length / int(length * scale)
                np.testing.assert_allclose(pixels[:, k], np.clip(want, 0, length), atol=1e-3)
    assert verify_bundle(out).passed
    assert "in pixels of the image that `detect()` was given" in (out / "README.md").read_text()
    # Somebody's file that has them elsewhere, with its sum made again.
    file = out / drawn[0].placed.file
    moved = placed(out, drawn[0])
    moved[0, 2] += 1
    file.write_bytes(moved.tobytes())
    sums = [line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()]
    lines = subprocess.run(["sha256sum", *sums], cwd=out, capture_output=True, text=True, check=True).stdout
    (out / "SHA256SUMS").write_text(lines)
    report = verify_bundle(out)
    assert [c.name for c in report.cases if c.message] == [drawn[0].name]
    assert "not where they are stored to be" in next(c.message for c in report.cases if c.message)


def test_the_self_test_in_c_finds_boxes_that_are_elsewhere(
    detector: tuple[Artifact, dict], tmp_path: Path
) -> None:
    artifact, options = detector
    out = package(artifact, spec("ios-spm", options), tmp_path / "out").directory
    core, assets = out / "Sources/DetectCore", out / "Sources/Detect/assets"
    source = (core / "preprocess.c").read_text()
    line = "begin[axis] = (whole - scaled[axis]) / 2 - margin(c, whole - size[axis]);"
    assert source.count(line) == 1
    for name, text in (("right", source), ("wrong", source.replace(line, "begin[axis] = 0;"))):
        (core / "preprocess.c").write_text(text)
        work = tmp_path / name
        work.mkdir()
        compile_core(core, work / "run", *link_options(core, "com_example_detect", work))
        done = self_test(work / "run", assets)
        assert (done.returncode == 0) == (name == "right"), done.stdout
        assert ("the boxes are not where they should be" in done.stdout) == (name == "wrong")


DETECT = """
import android.content.res.AssetManager;
import com.example.detect.Box;
import com.example.detect.DetectModel;
import java.nio.file.Files;
import java.nio.file.Paths;

public final class Detect {
    public static void main(String[] arguments) throws Exception {
        DetectModel model = DetectModel.load(new AssetManager(arguments[0]), com.example.detect.Accelerator.CPU);
        byte[] rgb = Files.readAllBytes(Paths.get(arguments[1]));
        int width = Integer.parseInt(arguments[2]);
        for (Box b : model.detect(rgb, width, rgb.length / 3 / width)) {
            System.out.println(b.index + " " + b.score + " " + b.left + " " + b.top + " " + b.right + " " + b.bottom);
        }
        System.exit(0);
    }
}
"""


def test_detect_gives_pixels_on_the_jvm(detector: tuple[Artifact, dict], tmp_path: Path) -> None:
    tools.need("javac", "java", "jar", tools.ORT_JVM)
    artifact, options = detector
    (aar,) = package(artifact, spec("android-aar", options), tmp_path / "out").directory.rglob("*.aar")
    shutil.unpack_archive(aar, tmp_path / "aar", "zip")
    jar, host = tmp_path / "aar/classes.jar", host_classes("onnxruntime", tmp_path)
    (tmp_path / "Detect.java").write_text(DETECT)
    classes = javac([tmp_path / "Detect.java"], [jar, *host], tmp_path / "classes", "8")
    run("jar", "c0Mf", tmp_path / "assets.apk", "assets", cwd=tmp_path / "aar")
    joined = os.pathsep.join(map(str, [classes, jar, *host]))
    (file,) = (tmp_path / "aar").rglob("edgekit.json")
    for case in read(file).golden.cases:
        if case.image is None:
            continue
        image = (file.parent / case.image.file, str(case.image.width))
        lines = run("java", "-cp", joined, "Detect", tmp_path / "assets.apk", *image, cwd=tmp_path)
        found = np.array(lines.split(), np.float64).reshape(-1, 6)
        np.testing.assert_allclose(found, placed(file.parent, case), atol=1e-2)
