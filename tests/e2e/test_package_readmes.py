"""The examples of every package's README compile as they are, for models with an image, one and several inputs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import package_models as models
import package_tools as tools
import pytest
from package_jvm import HERE, javac, run

from edgekit.artifact.manifest import Artifact
from edgekit.package import PackageSpec, package
from edgekit.package.formats import carries, writers

pytest.importorskip("ai_edge_litert")

KINDS = [
    ("squeeze", "ort-int8"),
    ("logits", "tflite-int8"),
    ("detect", "ort-fp32"),
    ("listen", "ort-fp32"),
    ("two", "tflite-fp32"),
    ("text", "ort-fp32"),
]
KOTLIN = tools.NODE_MODULES / "kotlin-compiler"


def camel(name: str) -> str:
    return "".join(w.capitalize() for w in name.split("_"))


def blocks(out: Path, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert found
    return [str(f) for f in found]


@pytest.fixture(scope="module", params=KINDS, ids=lambda k: k[0])
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Artifact, dict[str, Path]]:
    name, target = request.param
    root = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "models-cache"))
        artifact = models.build(name, root / "source", (target,))
    options = models.package_options(name, artifact, root)
    made = {}
    for format_ in ("web", "android-aar", "ios-spm", "react-native"):
        if not carries(format_, writers()[format_].FORMAT, artifact.manifest.target.backend):
            continue
        if format_ == "android-aar" and not shutil.which("javac"):
            continue
        spec = PackageSpec(format=format_, name=f"com.example.{name}", version="1.0.0", **options)
        made[format_] = package(artifact, spec, root / format_).directory
    return name, artifact, made


Written = tuple[str, Artifact, dict[str, Path]]


@pytest.mark.parametrize("format_", ["web", "react-native"])
def test_typescript_takes_the_example(written: Written, format_: str, tmp_path: Path) -> None:
    tools.need(tools.NODE_MODULES, "node")
    name, _, made = written
    if format_ not in made:
        pytest.skip("another runtime's format")
    modules = tmp_path / "node_modules"
    modules.mkdir()
    for installed in tools.NODE_MODULES.iterdir():
        (modules / installed.name).symlink_to(installed)
    shutil.copytree(made[format_], modules / f"com.example.{name}")
    (code,) = blocks(made[format_], "js")
    (tmp_path / "given.d.ts").write_text(
        "declare const imageData: ImageData;\n"
        "declare const RNFS: { readFileAssets(name: string, encoding: string): Promise<string> };\n"
        "declare function toBytes(text: string): Uint8Array;\n"
        'declare module "*.tflite" { const asset: number; export = asset; }\n'
    )
    (tmp_path / "example.js").write_text(code)
    options = {
        "strict": True, "noImplicitAny": False, "allowJs": True, "checkJs": True, "noEmit": True,
        "target": "es2022", "module": "esnext", "moduleResolution": "bundler",
        "lib": ["es2022", "dom"], "types": [], "skipLibCheck": True,
    }  # fmt: skip
    (tmp_path / "tsconfig.json").write_text(
        json.dumps({"compilerOptions": options, "files": ["given.d.ts", "example.js"]})
    )
    done = subprocess.run(
        ["node", modules / "typescript/bin/tsc", "-p", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, code + done.stdout


def test_kotlin_takes_the_example(written: Written, tmp_path: Path) -> None:
    tools.need(KOTLIN, "javac")
    name, _, made = written
    if "android-aar" not in made:
        pytest.skip("no JDK")
    (aar,) = made["android-aar"].rglob("*.aar")
    shutil.unpack_archive(aar, tmp_path / "aar", "zip")
    host = javac([HERE / "host"], [], tmp_path / "host", "8")
    _, code = blocks(made["android-aar"], "kotlin")
    lines = [
        f"import com.example.{name}.*",
        "import android.content.Context",
        "import android.graphics.Bitmap",
        "fun example(context: Context, bitmap: Bitmap) {",
        code,
        "}",
    ]
    (tmp_path / "Example.kt").write_text("\n".join(lines))
    classpath = f"{tmp_path / 'aar/classes.jar'}:{host}"
    run("bash", KOTLIN / "bin/kotlinc", "-cp", classpath, "-d", "out", "Example.kt", cwd=tmp_path)


def test_swift_parses_the_example_and_no_assert_is_in_it(written: Written) -> None:
    name, artifact, made = written
    if "ios-spm" not in made:
        pytest.skip("another runtime's format")
    tree_sitter, swift = pytest.importorskip("tree_sitter"), pytest.importorskip("tree_sitter_swift")
    parser = tree_sitter.Parser(tree_sitter.Language(swift.language()))
    (code,) = blocks(made["ios-spm"], "swift")
    assert not parser.parse(code.encode()).root_node.has_error, code
    # A release build leaves assert() and what is in it out.
    assert "assert(" not in code
    called = re.findall(r"model\.(\w+)\(", code)
    source = (made["ios-spm"] / f"Sources/{camel(name)}/{camel(name)}.swift").read_text()
    assert called[0] == "selfTest"
    assert all(f"public func {c}(" in source for c in called)
    if "run" in called:
        assert code.count("[UInt8](") == len(artifact.manifest.inputs)


def test_the_swift_package_has_the_minimum_of_its_dependency(written: Written) -> None:
    name, _, made = written
    if "ios-spm" not in made:
        pytest.skip("another runtime's format")
    manifest = (made["ios-spm"] / "Package.swift").read_text()
    assert "platforms: [.iOS(.v15), .macOS(.v14)]" in manifest
    assert 'from: "1.24.2"' in manifest
    assert 's.ios.deployment_target = "15.0"' in (made["ios-spm"] / f"{camel(name)}.podspec").read_text()
    readme = (made["ios-spm"] / "README.md").read_text()
    assert "MinimumOSVersion" in readme
    assert "ITMS-90530" in readme
