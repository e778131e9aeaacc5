"""Every kind of model in every format that takes it, and each package's own self-test where it can run here."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import package_models as models
import package_tools as tools
import pytest
from package_browser import browse, served, verdict
from package_core import compile_core, link_options, self_test
from package_jvm import host_classes, javac, litert_library, run

from edgekit.artifact.manifest import Artifact
from edgekit.errors import UnsupportedError
from edgekit.package import PackageSpec, is_bundle, package, verify_bundle
from edgekit.package.formats import carries, writers

pytest.importorskip("ai_edge_litert")

REFUSED = {
    ("squeeze_int8_io", "tflite-int8", "web"): "LiteRT in JavaScript does not take int8",
    ("squeeze_int8_io", "tflite-int8", "tflite-metadata"): "MediaPipe Tasks feeds float32 or uint8",
    ("squeeze", "tflite-int8", "tflite-metadata"): "channels last",
    ("logits", "tflite-fp32", "tflite-metadata"): "channels last",
    ("logits", "tflite-int8", "tflite-metadata"): "channels last",
    ("detect", "tflite-fp32", "tflite-metadata"): "channels last",
}
"""What a runtime cannot take: a typed error that says so, and nothing written."""

CASES = [(name, target) for name, kind in models.KINDS.items() for target in kind.targets]
QUICK = {
    ("squeeze_folded", "tflite-int8"),
    ("segment", "tflite-int8"),
    ("text", "ort-fp32"),
    ("text", "tflite-fp32"),
    ("two", "tflite-fp32"),
    ("logits", "tflite-int8"),
    ("detect", "ort-fp32"),
}

DRIVER = """
import android.content.res.AssetManager;

public final class SelfTest {{
    public static void main(String[] arguments) throws Exception {{
        {package}.{cls} model = {package}.{cls}.loadVerified(new AssetManager(arguments[0]));
        System.out.println(model.selfTest());
        System.exit(0);
    }}
}}
"""


@pytest.fixture(scope="module")
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Artifact, dict[str, Path]]:
    """One artifact's packages by format."""
    name, target = request.param
    root = tmp_path_factory.mktemp(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_CACHE", str(tmp_path_factory.getbasetemp() / "models-cache"))
        artifact = models.build(name, root / "source", (target,))
    made: dict[str, Path] = {}
    for format_, writer in writers().items():
        # One format takes text encoders of transformers only: test_package_transformers_js.py.
        if writer.FORMAT.tokenizer or not carries(format_, writer.FORMAT, artifact.manifest.target.backend):
            continue
        options = models.package_options(name, artifact, root)
        spec = PackageSpec(
            format=format_, name=f"com.example.{name}", version="1.0.0", license="MIT", **options
        )
        out = root / "out" / format_
        if (reason := REFUSED.get((name, target, format_))) is not None:
            with pytest.raises(UnsupportedError, match=reason):
                package(artifact, spec, out)
            assert not out.exists()
        elif format_ != "android-aar" or shutil.which("javac"):
            made[format_] = package(artifact, spec, out).directory
    return name, artifact, made


each = pytest.mark.parametrize(
    "written",
    [
        pytest.param((n, t), id=f"{n}-{t}", marks=() if (n, t) in QUICK else pytest.mark.slow)
        for n, t in CASES
    ],
    indirect=True,
)


@each
def test_bundles_replay(written: tuple[str, Artifact, dict[str, Path]]) -> None:
    _, artifact, made = written
    bundles = list(made["bundle"].glob("*.zip"))
    bundles += [folder for kind, folder in made.items() if kind in ("ort", "tflite-metadata")]
    for path in bundles:
        assert is_bundle(path)
        assert verify_bundle(path).passed
    assert len(list(made)) >= 3
    assert artifact.passed


@each
def test_the_java_wrapper_passes_its_self_test(
    written: tuple[str, Artifact, dict[str, Path]], tmp_path: Path
) -> None:
    tools.need("javac", "java", "jar")
    name, artifact, made = written
    (aar,) = made["android-aar"].rglob("*.aar")
    shutil.unpack_archive(aar, tmp_path / "aar", "zip")
    jar = tmp_path / "aar" / "classes.jar"
    host = host_classes(artifact.manifest.target.backend, tmp_path)
    cls = "".join(w.capitalize() for w in name.split("_")) + "Model"
    (tmp_path / "SelfTest.java").write_text(DRIVER.format(package=f"com.example.{name}", cls=cls))
    classes = javac([tmp_path / "SelfTest.java"], [jar, *host], tmp_path / "classes", "8")
    run("jar", "c0Mf", tmp_path / "assets.apk", "assets", cwd=tmp_path / "aar")
    joined = os.pathsep.join(map(str, [classes, jar, *host]))
    library = f"-Dlitert.library={litert_library()}"
    report = run("java", library, "-cp", joined, "SelfTest", tmp_path / "assets.apk", cwd=tmp_path)
    assert report.startswith("CPU passed"), report


@each
def test_the_c_core_passes_its_self_test(
    written: tuple[str, Artifact, dict[str, Path]], tmp_path: Path
) -> None:
    name, _, made = written
    if "ios-spm" not in made:
        pytest.skip("ONNX Runtime only")
    module = "".join(w.capitalize() for w in name.split("_"))
    core = made["ios-spm"] / "Sources" / f"{module}Core"
    program = tmp_path / "run"
    compile_core(core, program, *link_options(core, f"com_example_{name}", tmp_path))
    done = self_test(program, made["ios-spm"] / "Sources" / module / "assets")
    assert done.returncode == 0, done.stdout + done.stderr


@each
def test_the_page_passes_its_self_test(
    written: tuple[str, Artifact, dict[str, Path]], tmp_path: Path
) -> None:
    tools.need(tools.NODE_MODULES, "chromium")
    name, _, made = written
    if "web" not in made:
        pytest.skip("refused, as it should be")
    modules = tmp_path / "node_modules"
    modules.mkdir()
    for installed in tools.NODE_MODULES.iterdir():
        (modules / installed.name).symlink_to(installed)
    shutil.copytree(made["web"], modules / f"com.example.{name}")
    with served(modules) as site:
        document = browse(site, f"com.example.{name}/selftest.html", tmp_path / "profile")
    assert verdict(document), document
