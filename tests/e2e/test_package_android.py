"""Android libraries: compiled, dexed, linked, signed, and the DEX run again on a JVM with the real runtimes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import package_support as support
import package_tools as tools
import pytest
from package_jvm import HERE, JNA, host_classes, javac, litert_library, run

from edgekit.errors import BackendError, ToolMissingError
from edgekit.package import PackageSpec, android_aar, android_contract, package, writing
from edgekit.package.golden import drawn_image

FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
DX = (
    tools.NODE_MODULES
    / "@nativescript"
    / "android"
    / "framework"
    / "build-tools"
    / "android-metadata-generator.jar"
)
KOTLIN = tools.NODE_MODULES / "kotlin-compiler"
SPEC = PackageSpec(format="android-aar", name="com.example.digits", version="1.0.0", license="MIT")


@dataclass(frozen=True, kw_only=True)
class Built:
    """A package of one flavour, unpacked."""

    flavour: str
    out: Path
    aar: Path
    unpacked: Path

    @property
    def jar(self) -> Path:
        return self.unpacked / "classes.jar"


@pytest.fixture(scope="module", params=["tflite", "onnxruntime"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    tools.need("javac", "java")
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "tflite":
        pytest.importorskip("ai_edge_litert")
        artifact = support.tflite_artifact(root / "artifact", folded=False)
    else:
        artifact = support.onnx_artifact(root / "artifact")
    out = package(artifact, SPEC, root / "out").directory
    aar = out / "maven/com/example/digits/1.0.0/digits-1.0.0.aar"
    with zipfile.ZipFile(aar) as archive:
        archive.extractall(root / "aar")
    return Built(flavour=request.param, out=out, aar=aar, unpacked=root / "aar")


def dexed(built: Built, host: list[Path], work: Path) -> Path:
    """The library and the driver as ``classes.dex``."""
    driver = javac([HERE / "app" / "Driver.java"], [built.jar, *host], work / "driver", "7")
    run("jar", "cf", work / "driver.jar", "-C", driver, ".", cwd=work)
    dex = ["java", "-cp", DX, "com.android.dx.command.Main", "--dex", "--output=classes.dex"]
    run(*dex, built.jar, work / "driver.jar", cwd=work)
    return work / "classes.dex"


def apk(built: Built, dex: Path, work: Path, *, stored: bool) -> Path:
    """A signed APK with the library's assets; ``stored`` is what AGP's defaults do to models."""
    linked, aligned, signed = (work / n for n in ("linked.apk", "aligned.apk", "signed.apk"))
    shutil.rmtree(work / "apk", ignore_errors=True)
    keep = [a for s in (".tflite", ".onnx", ".ort") for a in ("-0", s)]
    manifest = HERE / "app" / "AndroidManifest.xml"
    link = ["aapt2", "link", "-o", linked, "-I", FRAMEWORK, "--manifest", manifest]
    run(*link, "-A", built.unpacked / "assets", *keep, cwd=work)
    run("zip", "-q", linked, dex.name, cwd=dex.parent)
    if not stored:
        compress_all(linked)
    run("zipalign", "-f", "-p", "4", linked, aligned, cwd=work)
    key = work / "key.jks"
    if not key.exists():
        make = ["keytool", "-genkeypair", "-keystore", key, "-storepass", "android", "-keypass", "android"]
        run(*make, "-alias", "k", "-keyalg", "RSA", "-dname", "CN=test", "-validity", "2", cwd=work)
    sign = ["apksigner", "sign", "--ks", key, "--ks-pass", "pass:android", "--min-sdk-version", "23"]
    run(*sign, "--out", signed, aligned, cwd=work)
    assert "Verifies" in run("apksigner", "verify", "--verbose", signed, cwd=work)
    return signed


def compress_all(path: Path) -> None:
    """Deflate every entry; aapt2 would leave alone what does not shrink."""
    with zipfile.ZipFile(path) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def drive(signed: Path, host: list[Path], work: Path, *arguments: str | Path) -> list[str]:
    """Take the DEX out of the APK, turn it back into class files, and run the driver on the JVM."""
    with zipfile.ZipFile(signed) as archive:
        (work / "from-apk.dex").write_bytes(archive.read("classes.dex"))
    run("enjarify", "-f", "-o", "back.jar", "from-apk.dex", cwd=work, path="/usr/bin:/bin")
    joined = os.pathsep.join(map(str, [work / "back.jar", *host]))
    command = ["java", "-noverify", f"-Dlitert.library={litert_library()}", "-cp", joined, "Driver", signed]
    return run(*command, *arguments, cwd=work).splitlines()


def check_driver(lines: list[str], image: np.ndarray) -> None:
    assert lines[0] == "accelerator CPU"
    cases = [line.split(" ", 4) for line in lines if line.startswith("case ")]
    assert len(cases) == 6
    assert all(passed == "true" for _, _, passed, *_ in cases), cases
    assert [line for line in lines if line.startswith(("refused", "accepted"))] == [
        "refused short image",
        "refused wrong shape",
        "refused wrong size",
    ]
    scores = {int(line.split()[1]): float(line.split()[2]) for line in lines if line.startswith("score ")}
    fed = support.CONTRACT.apply(image)
    want = support.reference(fed)[0]
    np.testing.assert_allclose([scores[i] for i in range(10)], want, atol=1e-6)


def test_the_dex_of_a_signed_apk_gives_the_golden_vectors(built: Built, tmp_path: Path) -> None:
    tools.need("aapt2", "zipalign", "apksigner", "keytool", "enjarify", "zip", FRAMEWORK, DX)
    image = support.images(3)[0][2].repeat(2, axis=0)
    (tmp_path / "image.rgb").write_bytes(image.tobytes())
    picture = (tmp_path / "image.rgb", str(image.shape[1]), str(image.shape[0]))
    host = host_classes(built.flavour, tmp_path)
    dex = dexed(built, host, tmp_path)
    signed = apk(built, dex, tmp_path, stored=True)
    with zipfile.ZipFile(signed) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith((".tflite", ".onnx")))
        assert entry.compress_type == zipfile.ZIP_STORED
        header = signed.read_bytes()[entry.header_offset : entry.header_offset + 30]
        start = entry.header_offset + 30 + int.from_bytes(header[26:28], "little")
        assert (start + int.from_bytes(header[28:30], "little")) % 4 == 0
        assert not [n for n in archive.namelist() if n.endswith(".so")]
    lines = drive(signed, host, tmp_path, *picture)
    check_driver(lines, image)
    if built.flavour == "tflite":  # the same runtime version made the vectors
        assert all(float(line.split(" ")[3]) == 0.0 for line in lines if line.startswith("case "))
    compressed = apk(built, dex, tmp_path, stored=False)
    with zipfile.ZipFile(compressed) as archive:
        entry = next(i for i in archive.infolist() if i.filename.endswith((".tflite", ".onnx")))
        assert entry.compress_type == zipfile.ZIP_DEFLATED
    check_driver(drive(compressed, host, tmp_path, *picture), image)


def assets_only(built: Built, path: Path) -> Path:
    """The library's assets as an APK has them."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted((built.unpacked / "assets").rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(built.unpacked).as_posix())
    return path


def test_an_accelerator_that_computes_wrongly_is_passed_over(built: Built, tmp_path: Path) -> None:
    """The GPU of this host answers, and wrongly: the self-test finds out, and the CPU is taken."""
    if built.flavour != "tflite":
        pytest.skip("ONNX Runtime's NNAPI cannot be stood in for: its classes are the real ones")
    tools.need(JNA)
    host = host_classes(built.flavour, tmp_path)
    driver = javac([HERE / "app" / "Driver.java"], [built.jar, *host], tmp_path / "driver", "8")
    assets = assets_only(built, tmp_path / "assets.zip")
    joined = os.pathsep.join(map(str, [driver, built.jar, *host]))
    command = ["java", f"-Dlitert.library={litert_library()}", "-cp", joined]
    right = run(*command, "-Dlitert.gpu=right", "Driver", assets, cwd=tmp_path).splitlines()
    assert right[0] == "accelerator GPU"
    wrong = run(*command, "-Dlitert.gpu=wrong", "Driver", assets, cwd=tmp_path).splitlines()
    assert wrong[0] == "accelerator CPU"
    assert all(line.split(" ")[2] == "true" for line in wrong if line.startswith("case "))


START = """
package com.example.digits.sample;

public final class Start {
    public static void main(String[] arguments) {
        new MainActivity().onCreate(null);
    }
}
"""


def test_the_sample_app_shows_a_passed_self_test(built: Built, tmp_path: Path) -> None:
    host = host_classes(built.flavour, tmp_path)
    (tmp_path / "Start.java").write_text(START)
    sources = [built.out / "sample/app/src/main/java", tmp_path / "Start.java"]
    classes = javac(sources, [built.jar, *host], tmp_path / "classes", "8")
    joined = os.pathsep.join(map(str, [classes, built.jar, *host]))
    apk_ = assets_only(built, tmp_path / "assets.zip")
    command = ["java", f"-Dlitert.library={litert_library()}", f"-Dapk={apk_}", "-cp", joined]
    shown = run(*command, "com.example.digits.sample.Start", cwd=tmp_path)
    assert shown.startswith("running the self-test\nCPU passed"), shown


def test_kotlin_compiles_against_the_library(built: Built, tmp_path: Path) -> None:
    tools.need(KOTLIN)
    host = javac([HERE / "host"], [], tmp_path / "host", "8")
    classpath = os.pathsep.join(map(str, [built.jar, host]))
    compiler = KOTLIN / "bin" / "kotlinc"
    run("bash", compiler, "-cp", classpath, "-d", tmp_path / "out", HERE / "app" / "Use.kt", cwd=tmp_path)
    assert list((tmp_path / "out").rglob("UseKt.class"))


def test_the_repository_is_complete(built: Built) -> None:
    folder = built.aar.parent
    module = json.loads((folder / "digits-1.0.0.module").read_text())
    for variant in module["variants"]:
        for file in variant["files"]:
            data = (folder / file["url"]).read_bytes()
            assert (file["size"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    runtime = next(v for v in module["variants"] if v["name"] == "releaseRuntimeElements")
    group = {"tflite": "com.google.ai.edge.litert", "onnxruntime": "com.microsoft.onnxruntime"}[built.flavour]
    assert runtime["dependencies"][0]["group"] == group
    for file in folder.glob("*.sha1"):
        data = file.with_suffix("").read_bytes()
        assert file.read_text() == hashlib.sha1(data, usedforsecurity=False).hexdigest()
    manifest = (built.unpacked / "AndroidManifest.xml").read_text()
    assert ("TelemetryInitializer" in manifest) == (built.flavour == "onnxruntime")
    with zipfile.ZipFile(built.aar) as archive:
        assert not [n for n in archive.namelist() if n.endswith(".so")]
        model = next(i for i in archive.infolist() if i.filename.endswith((".tflite", ".onnx")))
        assert model.compress_type == zipfile.ZIP_STORED


def test_maven_resolves_it_from_the_folder(built: Built, tmp_path: Path) -> None:
    maven = Path("/usr/share/maven/lib")
    tools.need(maven)
    jars = sorted(maven.glob("*.jar"))
    sources = [HERE / "app" / n for n in ("Resolve.java", "FileTransporterFactory.java")]
    classes = javac(sources, jars, tmp_path / "classes", "8")
    joined = os.pathsep.join(map(str, [classes, *jars]))
    local = tmp_path / "local"
    command = ["java", "-cp", joined, "Resolve", built.out / "maven", local, "com.example:digits", "1.0.0"]
    lines = run(*command, cwd=tmp_path).splitlines()
    assert [Path(line.split(" ")[1]).name for line in lines[:2]] == [
        "digits-1.0.0.aar",
        "digits-1.0.0-sources.jar",
    ]
    assert Path(lines[0].split(" ")[1]).read_bytes() == built.aar.read_bytes()
    assert lines[2].startswith("needs ")
    assert lines[2].endswith(" runtime")


GRADLE = """
repositories {{
    maven {{ url uri("{folder}") }}
    maven {{ url uri("{runtime}") }}
}}
configurations {{ wanted }}
dependencies {{ wanted "com.example:digits:{version}" }}
task resolve {{
    doLast {{
        configurations.wanted.incoming.resolutionResult.allDependencies.each {{ println "needs " + it.requested }}
        configurations.wanted.files.each {{ println "file " + it }}
    }}
}}
"""


def gradle(built: Built, work: Path, version: str) -> list[str]:
    """What Gradle makes of the coordinates, offline; the runtime that they need is an empty stand-in.

    Debian's Gradle is older than Gradle module metadata (6.0): it reads the POM.
    """
    module = json.loads((built.aar.parent / "digits-1.0.0.module").read_text())
    (need,) = next(v for v in module["variants"] if "dependencies" in v)["dependencies"]
    group, name, wanted = need["group"], need["module"], need["version"]["requires"]
    folder = work / "runtime" / group.replace(".", "/") / name / wanted
    folder.mkdir(parents=True, exist_ok=True)
    writing.write_zip({"classes.jar": b""}, folder / f"{name}-{wanted}.aar")
    (folder / f"{name}-{wanted}.pom").write_text(
        "<project><modelVersion>4.0.0</modelVersion>"
        f"<groupId>{group}</groupId><artifactId>{name}</artifactId><version>{wanted}</version>"
        "<packaging>aar</packaging></project>"
    )
    (work / "settings.gradle").write_text('rootProject.name = "resolve"\n')
    script = GRADLE.format(folder=built.out / "maven", runtime=work / "runtime", version=version)
    (work / "build.gradle").write_text(script)
    command = ["gradle", "--offline", "--no-daemon", "-g", work / "home", "-q", "resolve"]
    return run(*command, cwd=work).splitlines()


def test_gradle_resolves_it_from_the_folder(built: Built, tmp_path: Path) -> None:
    tools.need("gradle")
    lines = gradle(built, tmp_path, "1.+")
    files = [Path(line.removeprefix("file ")) for line in lines if line.startswith("file ")]
    assert files[0].read_bytes() == built.aar.read_bytes()
    runtime = {"tflite": "com.google.ai.edge.litert:litert", "onnxruntime": "com.microsoft.onnxruntime:"}
    assert [line for line in lines if line.startswith(f"needs {runtime[built.flavour]}")], lines
    assert len(files) == 2


REPLAY = """
package com.example.digits;

import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.FileOutputStream;

public final class Replay {{
    static ImageContract[] CONTRACTS = {{ {contracts} }};
    static TensorSpec[] SPECS = {{ {specs} }};
{functions}
    public static void main(String[] names) throws Exception {{
        DataInputStream in = new DataInputStream(new FileInputStream(names[0]));
        FileOutputStream out = new FileOutputStream(names[1]);
        while (in.available() > 0) {{
            int index = in.readInt();
            int height = in.readInt();
            int width = in.readInt();
            byte[] rgb = new byte[height * width * 3];
            in.readFully(rgb);
            Tensor fed = new Preprocessor(CONTRACTS[index], SPECS[index]).apply(rgb, height, width);
            byte[] bytes = new byte[fed.data.capacity()];
            fed.data.get(bytes);
            out.write(bytes);
        }}
        out.close();
    }}
}}
"""


def test_java_preprocessing_is_bit_for_bit_that_of_python(built: Built, tmp_path: Path) -> None:
    specs = [support.image_spec(c) for c in support.CONTRACTS]
    functions = []
    for i, contract in enumerate(support.CONTRACTS):
        lines = android_contract.image_function(contract)
        functions += [
            line.replace("private static ImageContract image()", f"static ImageContract c{i}()")
            for line in lines
        ]
    source = REPLAY.format(
        contracts=", ".join(f"c{i}()" for i in range(len(specs))),
        specs=android_contract.tensor_specs(specs),
        functions="\n".join(functions),
    )
    (tmp_path / "Replay.java").write_text(source)
    classes = javac([tmp_path / "Replay.java"], [built.jar], tmp_path / "classes", "8")
    work, want = b"", b""
    for i, (contract, spec) in enumerate(zip(support.CONTRACTS, specs, strict=True)):
        for height, width in support.IMAGE_SIZES:
            image = drawn_image(height, width, i)
            work += struct.pack(">iii", i, height, width) + image.tobytes()
            want += contract.apply(image, spec).tobytes()
    (tmp_path / "in").write_bytes(work)
    joined = os.pathsep.join(map(str, [classes, built.jar]))
    run("java", "-cp", joined, "com.example.digits.Replay", "in", "out", cwd=tmp_path)
    assert (tmp_path / "out").read_bytes() == want


def test_the_same_bytes_again(built: Built, tmp_path: Path) -> None:
    from edgekit.artifact import manifest

    again = package(manifest.read(built.out.parent / "artifact"), SPEC, tmp_path / "again").directory
    for path in built.out.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(built.out)).read_bytes() == path.read_bytes(), path


def test_without_a_jdk_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ToolMissingError) as raised:
        android_aar.compile_jar({"A.java": b"class A {}"}, {})
    assert "JDK" in raised.value.hint


def test_what_javac_refuses_is_reported() -> None:
    tools.need("javac")
    with pytest.raises(BackendError, match="javac refuses"):
        android_aar.compile_jar({"A.java": b"class A { int x = y; }"}, {})
