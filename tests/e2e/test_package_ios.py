"""Swift packages: the C core built with gcc and run on its golden vectors, the Swift parsed, the plist read."""

from __future__ import annotations

import ctypes
import plistlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import package_support as support
import pytest
from package_core import compile_core, link_options, self_test

from edgekit.package import PackageSpec, ios_spm, package
from edgekit.package.descriptor import Descriptor, read
from edgekit.package.golden import drawn_image
from edgekit.preprocess.contract import Preprocessing

SPEC = PackageSpec(format="ios-spm", name="com.example.digits", version="1.0.0", license="MIT")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ios")
    return package(support.onnx_artifact(root / "artifact"), SPEC, root / "out").directory


@pytest.fixture(scope="module")
def program(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("build")
    core = written / "Sources" / "DigitsCore"
    compile_core(core, work / "run", *link_options(core, "com_example_digits", work))
    return work / "run"


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
