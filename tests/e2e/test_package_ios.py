"""Swift packages: the C core built with gcc and run on its golden vectors, the Swift parsed, the plist read."""

from __future__ import annotations

import ctypes
import plistlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import package_support as support
import package_tools as tools
import pytest

from edgekit.package import PackageSpec, ios_spm, package
from edgekit.package.descriptor import Descriptor, read
from edgekit.package.golden import drawn_image
from edgekit.preprocessing import Preprocessing

SPEC = PackageSpec(format="ios-spm", name="com.example.digits", version="1.0.0", license="MIT")
HEADERS = "com.github.asus4.onnxruntime/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers"

MAIN = """
#include "DigitsCore.h"
#include <stdio.h>
int main(int argc, char **argv) {
    char error[512] = "";
    com_example_digits_model *m = com_example_digits_load(argv[argc - 1], error, sizeof error);
    if (!m) { printf("error %s\\n", error); return 1; }
    int passed = 1;
    for (size_t i = 0; i < com_example_digits_case_count(); i++) {
        com_example_digits_case c;
        passed &= com_example_digits_self_test(m, i, &c);
        printf("%s %d %.17g %s\\n", c.name, c.passed, c.error, c.message);
    }
    com_example_digits_free(m);
    return passed ? 0 : 2;
}
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ios")
    return package(support.onnx_artifact(root / "artifact"), SPEC, root / "out").directory


def compile_core(core: Path, out: Path, *more: str | Path) -> None:
    tools.need("gcc")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    done = subprocess.run(
        ["gcc", *flags, "-I", core / "include", "-o", out, *more, "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def program(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import onnxruntime

    headers = tools.NODE_MODULES / HEADERS
    tools.need(headers)
    work = tmp_path_factory.mktemp("build")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    (work / "main.c").write_text(MAIN)
    core = written / "Sources" / "DigitsCore"
    options = [
        "-I",
        headers,
        work / "main.c",
        *sorted(core.glob("*.c")),
        library,
        f"-Wl,-rpath,{library.parent}",
    ]
    compile_core(core, work / "run", *options)
    soname = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    if f"[{library.name}]" not in soname:  # the wheel carries the file under its full version only
        name = soname.split("SONAME")[1].split("[")[1].split("]")[0]
        (work / name).symlink_to(library)
    return work / "run"


def self_test(program: Path, assets: Path) -> subprocess.CompletedProcess[str]:
    environment = {"LD_LIBRARY_PATH": str(program.parent), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run([program, assets], capture_output=True, text=True, env=environment, check=False)


def test_the_c_core_gives_the_golden_vectors(written: Path, program: Path) -> None:
    done = self_test(program, written / "Sources" / "Digits" / "assets")
    lines = [line.split(" ", 3) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 6
    assert all(line[1] == "1" and float(line[2]) < 1e-6 for line in lines)


def test_changed_vectors_fail(written: Path, program: Path, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    shutil.copytree(written / "Sources" / "Digits" / "assets", assets)
    image = assets / "golden" / "drawn-0" / "image.rgb"
    pixels = np.frombuffer(image.read_bytes(), np.uint8).reshape(-1, 3)
    image.write_bytes(pixels[:, ::-1].tobytes())
    done = self_test(program, assets)
    assert done.returncode == 2
    assert "drawn-0 0 0 the image does not become" in done.stdout
    (assets / "model" / "model.onnx").unlink()
    assert "error model/model.onnx is not in" in self_test(program, assets).stdout


def test_swift_parses_and_the_privacy_manifest_is_one(written: Path) -> None:
    tree_sitter = pytest.importorskip("tree_sitter")
    swift = pytest.importorskip("tree_sitter_swift")
    parser = tree_sitter.Parser(tree_sitter.Language(swift.language()))
    sources = sorted(written.rglob("*.swift"))
    assert [p.name for p in sources] == ["Package.swift", "Digits.swift", "GoldenTests.swift"]
    for path in sources:
        assert not parser.parse(path.read_bytes()).root_node.has_error, path
    assert parser.parse(b"let x = = 3 {").root_node.has_error
    privacy = plistlib.loads((written / "Sources" / "Digits" / "PrivacyInfo.xcprivacy").read_bytes())
    assert privacy["NSPrivacyTracking"] is False
    assert "not compiled" in (written / "README.md").read_text()
    assert 's.name = "Digits"' in (written / "Digits.podspec").read_text()


@pytest.mark.parametrize("contract", support.CONTRACTS)
def test_c_preprocessing_is_bit_for_bit_that_of_python(
    contract: Preprocessing, written: Path, tmp_path: Path
) -> None:
    spec = support.image_spec(contract)
    described: Descriptor = replace(
        read(written / "Sources" / "Digits" / "assets" / "edgekit.json"),
        preprocessing=contract,
        inputs=(spec,),
    )
    core = tmp_path / "core"
    shutil.copytree(written / "Sources" / "DigitsCore", core)
    (core / "contract.c").write_bytes(ios_spm.contract_source(described))
    entry = tmp_path / "entry.c"
    entry.write_text(
        '#include "contract.h"\n'
        "int go(const uint8_t *rgb, int h, int w, void *fed) { char e[256];\n"
        "return com_example_digits_prepare(&com_example_digits_image, com_example_digits_inputs, rgb, h, w, fed,"
        " e, sizeof e); }\n"
    )
    library = tmp_path / "core.so"
    sources = [core / "preprocess.c", core / "contract.c", entry]
    compile_core(core, library, "-I", core, "-shared", "-fPIC", *sources)
    go = ctypes.CDLL(str(library)).go
    for height, width in support.IMAGE_SIZES:
        image = drawn_image(height, width, 3)
        fed = np.zeros(contract.shape, contract.dtype)
        pointers = (image.ctypes.data_as(ctypes.c_void_p), height, width, fed.ctypes.data_as(ctypes.c_void_p))
        assert go(*pointers) == 1
        np.testing.assert_array_equal(fed, contract.apply(image, spec))
    if contract.resize is None:
        assert go(image.ctypes.data_as(ctypes.c_void_p), 5, 5, pointers[3]) == 0
