"""npm packages: strict TypeScript, esbuild, and the self-test in headless Chromium, with mutants that must fail."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import package_support as support
import package_tools as tools
import pytest
from package_browser import browse, served, verdict

from edgekit.package import PackageSpec, package
from edgekit.package.golden import drawn_image

NAME = "com.example.digits"
SPEC = PackageSpec(format="web", name=NAME, version="1.0.0", license="MIT")

TSCONFIG = {
    "compilerOptions": {
        "strict": True,
        "noUncheckedIndexedAccess": True,
        "noImplicitReturns": True,
        "noUnusedLocals": True,
        "noUnusedParameters": True,
        "exactOptionalPropertyTypes": True,
        "allowJs": True,
        "checkJs": True,
        "noEmit": True,
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "lib": ["es2022", "dom", "dom.iterable"],
        "types": [],
        # LiteRT.js' own declarations name WebGPU types that it does not depend on.
        "skipLibCheck": True,
    },
    "files": ["app.ts"],
}

# The implementation has to have the declared type, and an app has to be able to use it strictly.
APP = """
import { Model, type Category, type SelfTestReport } from "com.example.digits";
import { Model as Implementation } from "./checked/model.js";

type Declared = Pick<typeof Model, "load" | "loadVerified">;
export const same = Implementation satisfies Declared;

const query = new URLSearchParams(location.search);
const model: Model = await Model.loadVerified({
  accelerators: ["cpu"],
  baseUrl: "/com.example.digits/assets/",
  wasmUrl: new URL(query.get("wasm") ?? "", location.href).href,
});
const report: SelfTestReport = await model.selfTest();
const pixels = new ImageData(20, 20);
const found: Category[] = await model.classify(pixels, 2);
let refused = "";
try {
  await model.run({ image: new Float32Array(7) });
} catch (error) {
  refused = String(error);
}
const ok = report.passed && found.length === 2 && refused.includes("image takes");
document.documentElement.dataset["passed"] = String(ok);
model.close();
"""


@pytest.fixture(scope="module", params=["onnxruntime", "tflite"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder whose node_modules holds the package and what it needs."""
    tools.need(tools.NODE_MODULES, "node")
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "tflite":
        pytest.importorskip("ai_edge_litert")
        artifact = support.tflite_artifact(root / "artifact", folded=False)
    else:
        artifact = support.onnx_artifact(root / "artifact")
    modules = root / "node_modules"
    modules.mkdir()
    for installed in tools.NODE_MODULES.iterdir():
        (modules / installed.name).symlink_to(installed)
    package(artifact, SPEC, modules / NAME)
    return root


def test_selftest_passes_in_the_browser(site: Path, tmp_path: Path) -> None:
    with served(site / "node_modules") as running:
        dom = browse(running, f"{NAME}/selftest.html", tmp_path)
    assert verdict(dom), dom
    assert dom.count('"passed": true') == 7  # the report and its six cases


def test_webgpu_is_taken_where_it_passes_and_the_cpu_where_not(site: Path, tmp_path: Path) -> None:
    """LiteRT passes on WebGPU. ONNX Runtime's WebGPU kernel refuses a convolution that leaves its dilations to the
    default, as this model's does: the CPU has to take over."""
    folder = site / "node_modules" / NAME
    page = (folder / "selftest.html").read_text()
    asked = page.replace("Model.load({ accelerator, wasmUrl", "Model.loadVerified({ wasmUrl")
    assert asked != page
    (folder / "verified.html").write_text(asked)
    with served(site / "node_modules") as running:
        forced = browse(running, f"{NAME}/selftest.html?accelerator=gpu", tmp_path / "forced", gpu=True)
        chosen = browse(running, f"{NAME}/verified.html", tmp_path / "chosen", gpu=True)
    (folder / "verified.html").unlink()
    if "adapter" in forced:
        pytest.skip("this Chromium has no WebGPU in software")
    lite = "litert" in (folder / "package.json").read_text()
    assert verdict(forced) == lite, forced
    assert verdict(chosen), chosen
    assert f'"accelerator": "{"gpu" if lite else "cpu"}"' in chosen


MUTANTS = {
    "BGR": {"color": "bgr"},
    "divided by 255 only": {"mean": [0.0], "std": [1.0]},
    "channels last": {"layout": "NHWC"},
    "nearest": {"filter": "nearest"},
}


@pytest.mark.parametrize("mutant", [*MUTANTS, "labels"])
def test_mutants_fail_the_selftest(site: Path, tmp_path: Path, mutant: str) -> None:
    modules = tmp_path / "node_modules"
    modules.mkdir()
    for installed in (site / "node_modules").iterdir():
        if installed.name != NAME:
            (modules / installed.name).symlink_to(installed.resolve())
    shutil.copytree(site / "node_modules" / NAME, modules / NAME)
    assets = modules / NAME / "assets"
    if mutant == "labels":
        lines = (assets / "labels.txt").read_text().splitlines()
        (assets / "labels.txt").write_text("".join(f"{line}\n" for line in reversed(lines)))
    else:
        document = json.loads((assets / "edgekit.json").read_text())
        document["preprocessing"] |= MUTANTS[mutant]
        (assets / "edgekit.json").write_text(json.dumps(document))
    with served(modules) as running:
        dom = browse(running, f"{NAME}/selftest.html", tmp_path / "profile")
    assert not verdict(dom)
    wanted = "label file" if mutant == "labels" else "does not become the tensor"
    assert wanted in dom


def test_strict_typescript_and_a_bundled_app(site: Path, tmp_path: Path) -> None:
    tools.need("chromium")
    (site / "app.ts").write_text(APP)
    (site / "tsconfig.json").write_text(json.dumps(TSCONFIG))
    binaries = site / "node_modules"
    # TypeScript does not look into JavaScript below node_modules.
    shutil.copytree(binaries / NAME, site / "checked", dirs_exist_ok=True)
    checked = subprocess.run(
        ["node", binaries / "typescript" / "bin" / "tsc", "-p", "."],
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout
    bundled = subprocess.run(
        [
            binaries / "esbuild" / "bin" / "esbuild",
            "app.ts",
            "--bundle",
            "--format=esm",
            "--outfile=node_modules/app.js",
            "--log-level=warning",
        ],
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )
    assert bundled.returncode == 0, bundled.stderr
    (binaries / "app.html").write_text(
        '<!doctype html><html><script type="module" src="app.js"></script></html>'
    )
    lite = (binaries / NAME / "package.json").read_text().count("@litertjs/core")
    wasm = "/@litertjs/core/wasm/" if lite else "/onnxruntime-web/dist/"
    with served(binaries) as running:
        assert verdict(browse(running, f"app.html?wasm={wasm}", tmp_path))


REACT_NATIVE = """
import { Model } from "com.example.digits";
const read = async (name) =>
  new Uint8Array(await (await fetch(`/com.example.digits/assets/${name}`)).arrayBuffer());
let refused = "";
try {
  await Model.load();
} catch (error) {
  refused = String(error);
}
const model = await Model.loadVerified({ accelerators: ["cpu"], read });
const report = await model.selfTest();
document.documentElement.dataset.passed = String(report.passed && refused.includes("give read"));
"""

# ONNX Runtime Web behind the binding's name: the same interface (onnxruntime-common), another provider's name.
BINDING = """
import * as ort from "onnxruntime-web";
ort.env.wasm.wasmPaths = "/onnxruntime-web/dist/";
ort.env.wasm.numThreads = 1;
export const Tensor = ort.Tensor;
export const InferenceSession = {
  create: (model, options) =>
    ort.InferenceSession.create(model, { ...options, executionProviders: ["wasm"] }),
};
"""


def test_react_native_modules_pass_the_selftest(tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    spec = PackageSpec(format="react-native", name=NAME, version="1.0.0")
    modules = tmp_path / "node_modules"
    modules.mkdir()
    for installed in tools.NODE_MODULES.iterdir():
        (modules / installed.name).symlink_to(installed)
    package(support.onnx_artifact(tmp_path / "artifact"), spec, modules / NAME)
    assert "import.meta" not in "".join(p.read_text() for p in (modules / NAME).glob("*.js"))
    (tmp_path / "app.js").write_text(REACT_NATIVE)
    (tmp_path / "binding.js").write_text(BINDING)
    alias = f"--alias:onnxruntime-react-native={tmp_path / 'binding.js'}"
    bundle = [modules / "esbuild" / "bin" / "esbuild", "app.js", "--bundle", "--format=esm", alias]
    done = subprocess.run(
        [*bundle, "--outfile=node_modules/app.js"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (modules / "app.html").write_text(
        '<!doctype html><html><script type="module" src="app.js"></script></html>'
    )
    with served(modules) as running:
        assert verdict(browse(running, "app.html", tmp_path / "profile"))


def test_the_package_is_publishable(site: Path) -> None:
    folder = site / "node_modules" / NAME
    document = json.loads((folder / "package.json").read_text())
    assert (document["name"], document["version"], document["type"]) == (NAME, "1.0.0", "module")
    assert len(document["peerDependencies"]) == 1
    tools.need("npm")
    done = subprocess.run(
        ["npm", "pack", "--dry-run", "--json", "--offline"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packed = {f["path"] for f in json.loads(done.stdout)[0]["files"]}
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert packed == on_disk


REPLAY = """
import { readFileSync, writeFileSync } from "node:fs";
import { preprocess } from "./preprocess.mjs";
const { contract, spec, height, width } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const data = new Uint8Array(readFileSync(process.argv[3]));
const fed = preprocess(contract, spec, { data, height, width });
writeFileSync(process.argv[4], new Uint8Array(fed.buffer));
"""


@pytest.mark.parametrize("index", range(len(support.CONTRACTS)))
def test_javascript_preprocessing_is_bit_for_bit_that_of_python(index: int, tmp_path: Path) -> None:
    tools.need("node")
    contract = support.CONTRACTS[index]
    spec = support.image_spec(contract)
    source = Path(__file__).parents[2] / "targets" / "common" / "package" / "web" / "preprocess.js"
    shutil.copy(source, tmp_path / "preprocess.mjs")
    (tmp_path / "replay.mjs").write_text(REPLAY)
    for height, width in support.IMAGE_SIZES:
        if contract.resize is None and min(height, width) < 8:
            continue
        image = drawn_image(height, width, index)
        (tmp_path / "image").write_bytes(image.tobytes())
        described = {"name": "image", "dtype": spec.dtype, "shape": spec.shape, "scale": spec.scale}
        described["zero_point"] = spec.zero_point
        job = {"contract": contract.to_mapping(), "spec": described, "height": height, "width": width}
        (tmp_path / "job").write_text(json.dumps(job))
        arguments = [tmp_path / n for n in ("replay.mjs", "job", "image", "fed")]
        subprocess.run(["node", *arguments], check=True)
        fed = np.fromfile(tmp_path / "fed", spec.dtype).reshape(contract.shape)
        np.testing.assert_array_equal(fed, contract.apply(image, spec))
