"""Packages that an app developer can trust: the model, its preprocessing, and a test that runs on the phone.

In comes a verified artifact, out goes a folder in one of the formats of :mod:`edgekit.package.formats`, or the
judgement on a bundle that came from elsewhere. Nothing is written that was not replayed first.

    contents.collect   checks the artifact, replays its golden vectors, describes it (``edgekit.json``)
    bundle, web, …     one module a format: ``write(contents, out)``
    verify_bundle      opens a bundle as untrusted data and replays it
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgekit.artifact import language
from edgekit.artifact.manifest import Artifact
from edgekit.core import files, plugins
from edgekit.core.files import publish, scratch
from edgekit.errors import UnknownNameError, UnsupportedError, UsageError
from edgekit.package import native
from edgekit.package.bundle import holds_bundle, is_bundle, printed, seal
from edgekit.package.contents import collect
from edgekit.package.descriptor import PackageSpec
from edgekit.package.formats import Format, carries, writers
from edgekit.package.native import Native
from edgekit.package.verifying import BundleReport, verify_bundle

__all__ = [
    "BundleReport",
    "Format",
    "Package",
    "PackageSpec",
    "holds_bundle",
    "is_bundle",
    "package",
    "printed",
    "verify_bundle",
]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package that was written: its folder, its files (relative, sorted), the native libraries that it brings, and
    ``notes`` on what was decided."""

    format: str
    directory: Path
    files: tuple[str, ...]
    native: Native = field(default_factory=Native)
    notes: tuple[str, ...] = ()


def package(artifact: Artifact, spec: PackageSpec, out: Path) -> Package:
    """Write ``artifact`` as a package of ``spec.format`` into the new folder ``out``.

    Everything is checked before and written under a temporary name; ``out`` exists only when it is complete.

    Raises:
        UnknownNameError: no such format.
        UnsupportedError: the format cannot carry this backend's artifacts.
        UsageError: ``out`` exists.
        and what :func:`edgekit.package.contents.collect` raises.
    """
    language.refuse(artifact.manifest.target, "a package")
    formats = writers()
    if spec.format not in formats:
        raise UnknownNameError("package format", spec.format, formats)
    writer, backend = formats[spec.format], artifact.manifest.target.backend
    if not carries(spec.format, writer.FORMAT, backend):
        able = [name for name, other in formats.items() if carries(name, other.FORMAT, backend)]
        raise UnsupportedError(
            f"{spec.format} cannot carry {artifact.target}, which is for {plugins.info(backend).title}",
            hint=f"formats for this artifact: {', '.join(able)}",
        )
    if out.exists() or out.is_symlink():
        raise UsageError(f"{out} exists", hint="name a folder that does not exist yet (--out)")
    if files.is_within(out.absolute(), artifact.directory.resolve()):
        raise UsageError(
            f"{out} lies in the artifact, which the next build replaces",
            hint="name a folder elsewhere (--out)",
        )
    if not spec.golden and writer.FORMAT.bundle:
        raise UsageError(
            f"{spec.format} is what proves the model with its golden vectors",
            hint="--no-golden is for app packages: android-aar, ios-spm, web, react-native, ai-pack",
        )
    if spec.tokenizer is not None and not writer.FORMAT.tokenizer:
        raise UsageError(
            f"{spec.format} has no place for a tokenizer", hint="--tokenizer is for transformers-js"
        )
    if spec.native and writer.FORMAT.native is None:
        raise UsageError(
            f"{spec.format} brings no native libraries of Android into an app",
            hint="--native is for android-aar; edgekit verify APP.apk looks at an app",
        )
    contents = collect(artifact, spec, one_file=writer.FORMAT.one_file)
    needs = writer.FORMAT.native(contents.descriptor) if writer.FORMAT.native else ()
    # Before the package is written: what cannot be read is an error.
    found = native.of_package(needs, spec.native)
    out = out.absolute()
    with scratch(out.parent) as work:
        writer.write(contents, work)
        if not writer.FORMAT.bundle:
            seal(work, spec.sign_key)
        publish(work, out)
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    return Package(format=spec.format, directory=out, files=tuple(names), native=found, notes=contents.notes)
