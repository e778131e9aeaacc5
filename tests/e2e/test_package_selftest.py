"""The self-test page as people see it, errors of the web package in words, and packages without golden vectors."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import package_models as models
import package_support as support
import package_tools as tools
import pytest
from package_browser import browse, served, verdict
from package_core import compile_core
from package_jvm import host_classes, javac, run

from edgekit.artifact.manifest import Artifact
from edgekit.errors import SourceError, UsageError
from edgekit.package import PackageSpec, package, verify_bundle

NAME = "com.example.digits"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.onnx_artifact(tmp_path_factory.mktemp("selftest") / "artifact")


def spec(format_: str, **fields: object) -> PackageSpec:
    return PackageSpec(**{"format": format_, "name": NAME, "version": "1.0.0", **fields})


def installed(made: Path, modules: Path, name: str = NAME) -> Path:
    """``node_modules`` with the package and what it runs on."""
    modules.mkdir()
    for file in tools.NODE_MODULES.iterdir():
        (modules / file.name).symlink_to(file)
    shutil.copytree(made, modules / name)
    return modules


def shown(dom: str, name: str) -> str:
    found = re.search(rf'id="{name}"[^>]*>(.*?)</(?:p|pre|table)>', dom, re.DOTALL)
    assert found, dom[:3000]
    return found[1]


def test_the_page_has_a_verdict_pictures_and_latency(artifact: Artifact, tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    made = package(artifact, spec("web"), tmp_path / "out").directory
    with served(installed(made, tmp_path / "node_modules")) as site:
        dom = browse(site, f"{NAME}/selftest.html", tmp_path / "profile")
    assert shown(dom, "verdict") == "Passed: all 6 golden vectors on WebAssembly on the CPU."
    table = shown(dom, "cases")
    assert table.count("<tr>") == 7
    assert table.count("<canvas ") >= 2
    assert table.count("passed</td>") == 6
    assert re.search(r"digit \d [01]\.?\d*, digit \d", table)
    latency = shown(dom, "latency")
    numbers = re.search(r"median ([\d.]+) ms, fastest ([\d.]+) ms, 90th percentile ([\d.]+) ms", latency)
    assert numbers, latency
    assert float(numbers[2]) <= float(numbers[1]) <= float(numbers[3])


PICTURE = """<!doctype html><html><iframe id="page" src="selftest.html"></iframe><script>
const timer = setInterval(() => {
  const inside = document.getElementById("page").contentDocument;
  if (!inside.documentElement.dataset.passed) return;
  clearInterval(timer);
  const canvas = inside.querySelector("tr:last-child canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = { width: canvas.width, height: canvas.height, data: Array.from(data) };
  document.body.append(Object.assign(document.createElement("pre"), { id: "seen", textContent: JSON.stringify(seen) }));
  document.documentElement.dataset.passed = "true";
}, 50);
</script></html>"""


def test_the_picture_is_the_golden_image(artifact: Artifact, tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    made = package(artifact, spec("web"), tmp_path / "out").directory
    modules = installed(made, tmp_path / "node_modules")
    (modules / NAME / "picture.html").write_text(PICTURE)
    with served(modules) as site:
        seen = json.loads(shown(browse(site, f"{NAME}/picture.html", tmp_path / "profile"), "seen"))
    described = json.loads((made / "assets/edgekit.json").read_text())
    image = described["golden"]["cases"][-1]["image"]
    assert (seen["width"], seen["height"]) == (image["width"], image["height"])
    rgb = list((made / "assets" / image["file"]).read_bytes())
    assert [v for i, v in enumerate(seen["data"]) if i % 4 < 3] == rgb


def test_a_failed_page_says_what_failed(artifact: Artifact, tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    made = package(artifact, spec("web"), tmp_path / "out").directory
    modules = installed(made, tmp_path / "node_modules")
    file = modules / NAME / "assets/edgekit.json"
    file.write_text(file.read_text().replace('"kind": "none"', '"kind": "softmax"'))
    with served(modules) as site:
        dom = browse(site, f"{NAME}/selftest.html", tmp_path / "profile")
    assert not verdict(dom)
    assert shown(dom, "verdict").startswith("Failed: 6 of 6 golden vectors.")
    assert "the outputs do not become what the post-processing contract says" in shown(dom, "cases")


def test_boxes_and_several_inputs_have_a_page_too(tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    for name, said in (("detect", r"\d+ boxes"), ("two", r"tanh|\[1,2\]")):
        artifact = models.build(name, tmp_path / name, ("ort-fp32",))
        options = models.package_options(name, artifact, tmp_path)
        made = package(
            artifact, spec("web", name=f"com.example.{name}", **options), tmp_path / f"{name}-out"
        ).directory
        modules = installed(made, tmp_path / f"{name}-modules", f"com.example.{name}")
        with served(modules) as site:
            dom = browse(site, f"com.example.{name}/selftest.html", tmp_path / f"{name}-profile")
        assert verdict(dom), dom
        assert re.search(said, shown(dom, "cases"))


ERRORS = """<!doctype html><html><script type="importmap">IMPORTS</script><pre id="said"></pre>
<script type="module">
  import { Model } from "./index.js";
  const said = [];
  const words = async (what) => { try { await what(); said.push("nothing"); } catch (e) { said.push(e.message); } };
  const wasmUrl = new URL("../onnxruntime-web/dist/", location.href).href;
  await words(() => Model.load({ wasmUrl, baseUrl: "/nowhere/" }));
  await words(() => Model.load({ wasmUrl, baseUrl: "/page/" }));
  await words(() => Model.load({ wasmUrl, accelerator: "gpu" }));
  const file = async (name) => new Uint8Array(await (await fetch(`assets/${name}`)).arrayBuffer());
  const broken = async (name) => (name.startsWith("model/") ? new Uint8Array([1, 2, 3]) : file(name));
  await words(() => Model.load({ wasmUrl, read: broken }));
  await words(() => Model.load({ wasmUrl, read: async () => new TextEncoder().encode("<html>") }));
  const model = await Model.load({ wasmUrl });
  await words(() => model.run({ image: new Float32Array(768), other: new Float32Array(1) }));
  await words(() => model.run({ image: new Float32Array(5) }));
  await words(() => model.run({ image: new Int32Array(768) }));
  await words(() => model.detect({ data: new Uint8Array(3), width: 1, height: 1 }));
  document.getElementById("said").textContent = JSON.stringify(said);
  document.documentElement.dataset.passed = "true";
</script></html>"""


def test_errors_are_in_words(artifact: Artifact, tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    made = package(artifact, spec("web"), tmp_path / "out").directory
    modules = installed(made, tmp_path / "node_modules")
    imports = re.search(
        r'<script type="importmap">(.*?)</script>', (made / "selftest.html").read_text(), re.DOTALL
    )
    assert imports
    (modules / NAME / "errors.html").write_text(ERRORS.replace("IMPORTS", imports[1]))
    # What a server of a single-page app does with a name that it does not know: its page, as HTML.
    (modules / "page" / "edgekit.json").mkdir(parents=True)
    (modules / "page" / "edgekit.json" / "index.html").write_text("<html></html>")
    with served(modules) as site:
        dom = browse(site, f"{NAME}/errors.html", tmp_path / "profile")
    said = json.loads(shown(dom, "said").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    wanted = [
        r"/nowhere/edgekit\.json is answered with 404 .*baseUrl",
        r"is answered with a web page: .*baseUrl",
        r"this browser has no WebGPU|adapter",
        r"the runtime does not load model/model\.onnx on the cpu: .*WebAssembly files served at",
        r"edgekit\.json is not what the package has: .*baseUrl",
        r"there is no input other; the inputs are image",
        r"input image takes \[1,3,16,16\], got 5 values",
        r"input image takes float32, not Int32Array",
        r"gives no boxes; use classify\(\)",
    ]
    assert len(said) == len(wanted)
    for text, pattern in zip(said, wanted, strict=True):
        assert re.search(pattern, text), (pattern, text)


@pytest.mark.parametrize("format_", ["web", "ios-spm", "android-aar", "react-native", "ai-pack"])
def test_golden_vectors_can_be_left_out(format_: str, artifact: Artifact, tmp_path: Path) -> None:
    if format_ == "android-aar" and not shutil.which("javac"):
        pytest.skip("no JDK")
    made = package(artifact, spec(format_, golden=False), tmp_path / "out").directory
    full = package(artifact, spec(format_), tmp_path / "full").directory
    assert not [p for p in made.rglob("*") if "golden/" in p.as_posix() and p.suffix == ".bin"]
    size = [sum(p.stat().st_size for p in d.rglob("*") if p.is_file()) for d in (made, full)]
    assert size[0] < size[1]
    assert "--no-golden" in (made / "README.md").read_text()
    with pytest.raises(SourceError, match="no golden vectors"):
        verify_bundle(made)


def test_bundles_keep_theirs(artifact: Artifact, tmp_path: Path) -> None:
    for format_ in ("bundle", "ort"):
        with pytest.raises(UsageError, match="what proves the model"):
            package(artifact, spec(format_, golden=False), tmp_path / format_)


UNTESTED = """<!doctype html><html><script type="importmap">IMPORTS</script><pre id="said"></pre>
<script type="module">
  import { Model } from "./index.js";
  const wasmUrl = new URL("../onnxruntime-web/dist/", location.href).href;
  const model = await Model.loadVerified({ wasmUrl });
  const best = await model.classify(new ImageData(20, 20), 10);
  let why = "";
  try { await model.selfTest(); } catch (error) { why = error.message; }
  const sum = best.reduce((a, c) => a + c.score, 0);
  document.getElementById("said").textContent = JSON.stringify({ accelerator: model.accelerator, sum, why });
  document.documentElement.dataset.passed = "true";
</script></html>"""


def test_a_release_in_the_browser_takes_the_cpu_and_claims_no_test(
    artifact: Artifact, tmp_path: Path
) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    made = package(artifact, spec("web", golden=False), tmp_path / "out").directory
    modules = installed(made, tmp_path / "node_modules")
    page = (made / "selftest.html").read_text()
    imports = re.search(r'<script type="importmap">(.*?)</script>', page, re.DOTALL)
    assert imports
    (modules / NAME / "release.html").write_text(UNTESTED.replace("IMPORTS", imports[1]))
    with served(modules) as site:
        said = json.loads(shown(browse(site, f"{NAME}/release.html", tmp_path / "a"), "said"))
        failed = browse(site, f"{NAME}/selftest.html", tmp_path / "b")
    assert said["accelerator"] == "cpu"
    assert said["sum"] == pytest.approx(1, abs=1e-5)
    assert "without golden vectors" in said["why"]
    assert not verdict(failed)
    assert "without golden vectors" in shown(failed, "verdict")


RELEASE = """
import android.content.res.AssetManager;
import com.example.digits.DigitsModel;

public final class Release {
    public static void main(String[] arguments) throws Exception {
        DigitsModel model = DigitsModel.loadVerified(new AssetManager(arguments[0]));
        System.out.println(model.accelerator());
        try {
            System.out.println(model.selfTest());
        } catch (IllegalStateException e) {
            System.out.println(e.getMessage());
        }
        System.exit(0);
    }
}
"""


def test_a_release_on_the_jvm_takes_the_cpu_and_claims_no_test(artifact: Artifact, tmp_path: Path) -> None:
    tools.need("javac", "java", "jar", tools.ORT_JVM)
    (aar,) = package(artifact, spec("android-aar", golden=False), tmp_path / "out").directory.rglob("*.aar")
    shutil.unpack_archive(aar, tmp_path / "aar", "zip")
    jar, host = tmp_path / "aar/classes.jar", host_classes("onnxruntime", tmp_path)
    (tmp_path / "Release.java").write_text(RELEASE)
    classes = javac([tmp_path / "Release.java"], [jar, *host], tmp_path / "classes", "8")
    run("jar", "c0Mf", tmp_path / "assets.apk", "assets", cwd=tmp_path / "aar")
    joined = os.pathsep.join(map(str, [classes, jar, *host]))
    lines = run("java", "-cp", joined, "Release", tmp_path / "assets.apk", cwd=tmp_path).splitlines()
    assert lines == ["CPU", f"{NAME} was packaged without golden vectors: nothing can be tested"]


def test_a_release_in_c_has_no_cases(artifact: Artifact, tmp_path: Path) -> None:
    out = package(artifact, spec("ios-spm", golden=False), tmp_path / "out").directory
    core = out / "Sources/DigitsCore"
    entry = tmp_path / "entry.c"
    entry.write_text('#include "contract.h"\nint go(void) { return (int)com_example_digits_golden_size; }\n')
    library = tmp_path / "core.so"
    compile_core(core, library, "-I", core, "-shared", "-fPIC", core / "contract.c", entry)
    assert ctypes.CDLL(str(library)).go() == 0
    subprocess.run(["grep", "-q", "XCTSkipIf", out / "Tests/DigitsTests/GoldenTests.swift"], check=True)
