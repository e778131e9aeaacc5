"""React Native over LiteRT: the modules in headless Chromium with LiteRT.js behind the binding's interface, strict
TypeScript against the binding's own declarations, and models that the binding's runtime cannot take."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import package_support as support
import package_tools as tools
import pytest
from package_browser import browse, served, verdict

from edgekit.artifact import manifest
from edgekit.artifact.manifest import Artifact
from edgekit.errors import UnsupportedError
from edgekit.package import PackageSpec, package, verify_bundle

pytest.importorskip("ai_edge_litert")
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("package-react-native")]

NAME = "com.example.digits"
SPEC = PackageSpec(format="react-native", name=NAME, version="1.0.0", license="MIT")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return support.tflite_artifact(tmp_path_factory.mktemp("digits") / "artifact", folded=False)


@pytest.fixture
def modules(artifact: Artifact, tmp_path: Path) -> Path:
    """A project's node_modules with the package and what it needs."""
    tools.need(tools.NODE_MODULES)
    found = tmp_path / "node_modules"
    found.mkdir()
    for installed in tools.NODE_MODULES.iterdir():
        (found / installed.name).symlink_to(installed)
    package(artifact, SPEC, found / NAME)
    return found


# What react-native-fast-tflite 3.0.1 does, over LiteRT.js: buffers in the file's order, the same ones at every call,
# wrong sizes without an error, delegates that are not there as one.
BINDING = """
import { Tensor, loadAndCompile, loadLiteRt } from "@litertjs/core";
const ready = loadLiteRt("/@litertjs/core/wasm/");
const ARRAYS = { float32: Float32Array, int32: Int32Array };
const port = ({ name, dtype, shape }) => ({ name, dataType: dtype, shape: Array.from(shape) });
export async function loadTensorflowModel({ url }, delegates) {
  if (delegates.length) throw new Error(`the delegate ${delegates} is not enabled`);
  await ready;
  const data = new Uint8Array(await (await fetch(url)).arrayBuffer());
  const compiled = await loadAndCompile(data, { accelerator: "wasm" });
  const inputs = compiled.getInputDetails().map(port);
  const outputs = compiled.getOutputDetails().map(port);
  const kept = outputs.map(() => undefined);
  let busy = false;
  return {
    delegates, inputs, outputs,
    async run(buffers) {
      if (busy) throw new Error("the interpreter is at work");
      busy = true;
      if (!buffers.every((b) => b instanceof ArrayBuffer)) throw new Error("not buffers");
      const fed = inputs.map((p, i) => new Tensor(new ARRAYS[p.dataType](buffers[i]), p.shape));
      const found = await compiled.run(fed);
      for (let i = 0; i < found.length; i++) {
        const bytes = new Uint8Array((await found[i].moveTo("wasm")).toTypedArray().slice().buffer);
        kept[i] ??= new ArrayBuffer(bytes.length);
        new Uint8Array(kept[i]).set(bytes);
      }
      await new Promise((done) => setTimeout(done, 5));
      busy = false;
      return [...kept];
    },
    dispose() {
      compiled.delete();
    },
  };
}
"""

APP = """
import { Model } from "com.example.digits";
const folder = "/com.example.digits/assets/";
const asked = [];
const read = async (name) => {
  asked.push(name);
  return new Uint8Array(await (await fetch(folder + name)).arrayBuffer());
};
const source = { url: new URL(folder + FILE, location.href).href };
const reason = async (options) => Model.load(options).then(() => "", String);
const checks = {
  read: (await reason({ source })).includes("give read"),
  source: (await reason({ read })).includes("give source"),
  other: (await reason({ read, source: { url: "/other.tflite" } })).includes("is source the model of this package"),
};
const model = await Model.loadVerified({ source, read });
checks.accelerator = model.accelerator === "cpu";
const report = await model.selfTest();
checks.selfTest = report.passed && report.cases.length >= 4;
checks.model = !asked.some((name) => name.startsWith("model/"));
const [one, two] = await model.examples();
const apart = [await model.run(one.inputs), await model.run(two.inputs)];
const both = await Promise.all([model.run(one.inputs), model.run(two.inputs)]);
const scores = (outputs) => Array.from(Object.values(outputs)[0].data).join();
checks.together = scores(apart[0]) === scores(both[0]) && scores(apart[1]) === scores(both[1]);
checks.kept = scores(apart[0]) !== scores(apart[1]);
model.close();
const wrong = Object.keys(checks).filter((name) => !checks[name]);
document.body.textContent = `wrong: ${wrong.join(", ")} ${JSON.stringify(report)}`;
document.documentElement.dataset.passed = String(!wrong.length);
"""


def test_the_modules_pass_their_self_test(modules: Path, tmp_path: Path) -> None:
    tools.need("chromium")
    # A model of another shape in the package's place.
    other = support.tflite_artifact(tmp_path / "other", folded=True)
    shutil.copy(other.model, modules / "other.tflite")
    (file,) = (modules / NAME / "assets/model").iterdir()
    (tmp_path / "app.js").write_text(APP.replace("FILE", json.dumps(f"model/{file.name}")))
    (tmp_path / "binding.js").write_text(BINDING)
    (tmp_path / "platform.js").write_text('export const Platform = { OS: "android" };\n')
    names = {"react-native-fast-tflite": "binding.js", "react-native": "platform.js"}
    aliases = [f"--alias:{name}={tmp_path / file}" for name, file in names.items()]
    bundle = [modules / "esbuild/bin/esbuild", "app.js", "--bundle", "--format=esm", *aliases]
    done = subprocess.run(
        [*bundle, "--outfile=node_modules/app.js"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (modules / "app.html").write_text(
        '<!doctype html><html><body></body><script type="module" src="app.js"></script></html>'
    )
    with served(modules) as running:
        dom = browse(running, "app.html", tmp_path / "profile")
    assert verdict(dom), dom


TYPESCRIPT = """
import { Model, type Box, type Category } from "com.example.digits";
import { Model as Implementation } from "./checked/model.js";
import { createSession } from "./checked/runtime.js";
import { reader } from "./checked/read.js";

type Declared = Pick<typeof Model, "load" | "loadVerified">;
export const same = Implementation satisfies Declared;
export const own = [createSession, reader];
const read = async (name: string) => new Uint8Array(name.length);
const model: Model = await Model.loadVerified({ source: 7, read });
export const other: Promise<Model> = Model.load({ source: { url: "file:///model.tflite" }, read, accelerator: "gpu" });
const image = { data: new Uint8Array(12), width: 2, height: 2 };
export const found: Category[] = await model.classify(image, 2);
export const boxes: Box[] = model.boxes(await model.predict(image), image);
// @ts-expect-error
export const none = Model.load({ source: "model.tflite", read });
"""


def test_strict_typescript_against_the_bindings_own_declarations(modules: Path, tmp_path: Path) -> None:
    tools.need("node", tools.REACT_NATIVE / "react-native-fast-tflite")
    for name in ("react-native-fast-tflite", "react-native-nitro-modules"):
        shutil.copytree(tools.REACT_NATIVE / name, modules / name)
    (modules / "react-native").mkdir()
    (modules / "react-native/index.d.ts").write_text("export const Platform: { readonly OS: string };\n")
    # TypeScript does not look into JavaScript below node_modules.
    shutil.copytree(modules / NAME, tmp_path / "checked")
    (tmp_path / "app.ts").write_text(TYPESCRIPT)
    options = {
        "strict": True, "noUncheckedIndexedAccess": True, "noImplicitReturns": True, "noUnusedLocals": True,
        "exactOptionalPropertyTypes": True, "allowJs": True, "checkJs": True, "noEmit": True, "target": "es2022",
        "module": "esnext", "moduleResolution": "bundler", "lib": ["es2022", "dom"], "types": [],
        "skipLibCheck": True,
    }  # fmt: skip
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "files": ["app.ts"]}))
    tsc = ["node", modules / "typescript/bin/tsc", "-p", "."]

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run(tsc, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = checked()
    assert done.returncode == 0, done.stdout
    # The declarations are looked at: what the binding does not have is an error.
    runtime = tmp_path / "checked/runtime.js"
    runtime.write_text(runtime.read_text().replace("model.run(fed)", "model.run(tensors)"))
    assert "ArrayBuffer" in checked().stdout


def test_the_package_says_what_it_needs(modules: Path) -> None:
    document = json.loads((modules / NAME / "package.json").read_text())
    assert document["peerDependencies"] == {
        "react-native": "*",
        "react-native-fast-tflite": "^3.0.1",
        "react-native-nitro-modules": "*",
    }
    text = (modules / NAME / "README.md").read_text()
    assert f'require("{NAME}/assets/model/' in text
    assert "not on a phone" in text
    assert "@" not in text.split("## ")[0].replace("@react", "")
    assert not (modules / NAME / "usage.md").exists()
    assert verify_bundle(modules / NAME).passed


def test_what_the_bindings_runtime_is_too_old_for_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(artifact.directory, folder)
    newer = replace(artifact.manifest, minimum_runtime="LiteRT 2.1")
    manifest.write(newer, folder)
    with pytest.raises(UnsupportedError, match=r"needs LiteRT 2\.1; react-native-fast-tflite brings less"):
        package(manifest.read(folder), SPEC, tmp_path / "out")
    assert not (tmp_path / "out").exists()
