"""Packages that an app developer can trust: the model, its preprocessing, and a test that runs on the phone.

    contents.collect   checks the artifact, replays its golden vectors, describes it (``edgekit.json``)
    bundle, web, …     one module a format: ``write(contents, out)``
    verify_bundle      opens a bundle as untrusted data and replays it

Heavy imports (numpy, onnx, flatbuffers) happen inside the functions that need them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import UnknownNameError, UnsupportedError, UsageError
from edgekit.package.descriptor import PackageSpec

if TYPE_CHECKING:
    from edgekit.artifact.manifest import Artifact
    from edgekit.package.verifying import BundleReport
    from edgekit.types import Device

__all__ = ["FORMATS", "Format", "Package", "PackageSpec", "is_bundle", "package", "verify_bundle"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of package: the module that writes it, and the backends whose artifacts it can carry.

    ``one_file``: what loads the model there takes its main file only.
    """

    module: str
    backends: tuple[str, ...]
    help: str
    one_file: bool = True


FORMATS: Mapping[str, Format] = {
    "bundle": Format(
        module="bundle",
        backends=("onnxruntime", "tflite", "openvino", "tensorrt", "tensorrt_rtx"),
        help="model, contract, labels, golden vectors, SBOM and checksums in a folder and a zip",
        one_file=False,
    ),
    "android-aar": Format(
        module="android_aar",
        backends=("onnxruntime", "tflite"),
        help="an Android library in a Maven folder, and a sample app",
    ),
    "ios-spm": Format(
        module="ios_spm",
        backends=("onnxruntime",),
        help="a Swift package with its numerics in C, and a podspec",
    ),
    "web": Format(
        module="web",
        backends=("onnxruntime", "tflite"),
        help="an npm package (ESM and type declarations) over onnxruntime-web or @litertjs/core",
    ),
    "react-native": Format(
        module="react_native",
        backends=("onnxruntime",),
        help="an npm package over onnxruntime-react-native",
    ),
    "ai-pack": Format(
        module="ai_pack",
        backends=("onnxruntime", "tflite"),
        help="a Gradle module that Google Play delivers the model with",
    ),
    "ort": Format(
        module="ort",
        backends=("onnxruntime",),
        help="a bundle whose model is in the format of ONNX Runtime's mobile builds",
    ),
    "tflite-metadata": Format(
        module="tflite_metadata",
        backends=("tflite",),
        help="one .tflite with metadata and labels inside, for MediaPipe Tasks",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that was written: its folder and its files, relative and sorted."""

    format: str
    directory: Path
    files: tuple[str, ...]


def package(artifact: Artifact, spec: PackageSpec, out: Path) -> Package:
    """Write ``artifact`` as a package of ``spec.format`` into the new folder ``out``.

    Everything is checked before and written under a temporary name; ``out`` exists only when it is complete.

    Raises:
        UnknownNameError: no such format.
        UnsupportedError: the format cannot carry this backend's artifacts.
        UsageError: ``out`` exists.
        and what :func:`edgekit.package.contents.collect` raises.
    """
    from edgekit.core.store import publish, scratch
    from edgekit.package.contents import collect

    if spec.format not in FORMATS:
        raise UnknownNameError("package format", spec.format, FORMATS)
    chosen = FORMATS[spec.format]
    backend = artifact.manifest.target.backend
    if backend not in chosen.backends:
        able = [name for name, f in FORMATS.items() if backend in f.backends]
        raise UnsupportedError(
            f"{spec.format} cannot carry {artifact.target}: it is for {', '.join(chosen.backends)}",
            hint=f"formats for this artifact: {', '.join(able)}",
        )
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists", hint="name a folder that does not exist yet (--out)")
    writer = importlib.import_module(f"edgekit.package.{chosen.module}")
    contents = collect(artifact, spec, one_file=chosen.one_file)
    out = out.absolute()
    with scratch(out.parent) as work:
        writer.write(contents, work)
        publish(work, out)
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    return Package(format=spec.format, directory=out, files=tuple(files))


def is_bundle(path: Path) -> bool:
    """Whether ``path`` looks like a bundle: a zip archive, or a folder with ``edgekit.json``."""
    from edgekit.package import bundle

    return bundle.is_bundle(path)


def verify_bundle(
    path: Path, *, device: Device | None = None, accelerator: str = "cpu", public_key: Path | None = None
) -> BundleReport:
    """See :func:`edgekit.package.verifying.verify_bundle`; ``device`` defaults to this machine."""
    from edgekit.devices.execute import LOCAL
    from edgekit.package import verifying

    return verifying.verify_bundle(
        path, device=device or LOCAL, accelerator=accelerator, public_key=public_key
    )
