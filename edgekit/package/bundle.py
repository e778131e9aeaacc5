"""The bundle: the files that all other packages derive from, checksummed and optionally signed.

A bundle is untrusted when it is read: an archive's names must stay inside, every file must be listed in
``SHA256SUMS`` with its checksum, and where a key is given the signature over that list must be the key's.
"""

from __future__ import annotations

import contextlib
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from edgekit import entropy
from edgekit.core.files import DAMAGED_ZIP, read, temporary
from edgekit.errors import ContainerError, SourceError, UntrustedSourceError, UsageError
from edgekit.package import descriptor, readme, signing, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.preprocess import postprocessing
from edgekit.types import sha256_file

FORMAT = Format(
    help="model, contract, labels, golden vectors, SBOM and checksums in a folder and a zip",
    one_file=False,
    bundle=True,
)

MAX_BYTES = 16 << 30
"""Unpacked size above which an archive is refused: more than any model for an edge device."""

MAX_FILES = 1024
"""A bundle has a model, a few documents and two files a test vector."""

_EKZ = b"EKZ"
_REFUSE = "do not use this bundle; ask its sender for a new one"
_USAGE = """
```sh
sha256sum -c SHA256SUMS
edgekit verify .
```

The second runs the golden vectors on this machine's runtime. `edgekit.json` says what follows in a form for
programs.
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose checksums are right. ``signed`` says whether the signature was checked."""

    directory: Path
    descriptor: Descriptor
    signed: bool
    has_signature: bool


def bundle_files(contents: Contents, *, usage: str = _USAGE) -> dict[str, Content]:
    """Every file of the bundle by name, checksums and signature included; ``usage`` is for the README."""
    files = {**contents.files, **readme.documents(contents, usage)}
    sums = writing.sums(files)
    files[writing.SUMS] = sums
    if contents.spec.sign_key is not None:
        # Last: it is over the sums, which are over everything else.
        files[signing.SIGNATURE] = signing.sign(sums, contents.spec.sign_key)
    return files


def write(contents: Contents, out: Path) -> None:
    """``out/<name>-<version>/`` and the same as ``out/<name>-<version>.zip``, or ``.ekz`` where that was asked
    for: slower to write and to open, and smaller."""
    files = bundle_files(contents)
    stem = f"{contents.spec.name}-{contents.spec.version}"
    writing.write_tree(files, out / stem)
    if contents.spec.compress == "ekz":
        entropy.pack(out / stem, out / f"{stem}.ekz")
        return
    writing.write_zip(
        files, out / f"{stem}.zip", stored=tuple(PurePosixPath(f).suffix for f in _models(files))
    )


def is_bundle(path: Path) -> bool:
    """Whether ``path`` looks like a bundle: a zip archive, a ``.ekz``, or a folder with ``edgekit.json``; or like an
    app package, which has checksums and a bundle's files somewhere inside."""
    if path.is_file():
        return zipfile.is_zipfile(path) or _is_ekz(path)
    if (path / descriptor.FILE_NAME).is_file():
        return True
    return (path / writing.SUMS).is_file() and bool(_inside(path))


def seal(folder: Path, key: Path | None) -> None:
    """Write checksums of an app package's files, and with ``key`` their signature, as a bundle has them."""
    sums = writing.sums({p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()})
    (folder / writing.SUMS).write_bytes(sums)
    if key is not None:
        (folder / signing.SIGNATURE).write_bytes(signing.sign(sums, key))


def printed(path: Path) -> tuple[Path, ...]:
    """The bundles in the folder that the bundle format writes, a folder and an archive of it; else ``path`` itself."""
    if not path.is_dir() or is_bundle(path):
        return (path,)
    inside = sorted(islice(path.iterdir(), MAX_FILES))
    folders = [p for p in inside if p.is_dir() and (p / descriptor.FILE_NAME).is_file()]
    if len(folders) != 1:
        return (path,)
    known = {folders[0], *(path / f"{folders[0].name}{suffix}" for suffix in (".zip", ".ekz"))}
    return tuple(inside) if set(inside) <= known else (path,)


def holds_bundle(path: Path) -> bool:
    """Whether a folder or a zip archive has a bundle's description in it: of a file that nobody has named, and that may
    be any archive (arrays, a model of PyTorch's)."""
    if not path.is_file():
        return (path / descriptor.FILE_NAME).is_file()
    if not zipfile.is_zipfile(path):
        return False
    with contextlib.suppress(*DAMAGED_ZIP), zipfile.ZipFile(path) as archive:
        return descriptor.FILE_NAME in archive.namelist()
    return False


@contextlib.contextmanager
def opened(path: Path, *, public_key: Path | None = None) -> Iterator[Bundle]:
    """Open and check a bundle: a folder, a zip archive or a ``.ekz``; an archive is unpacked to a temporary folder.

    Of an app package all files are checked, and what is opened is the bundle inside.

    Raises:
        SourceError: it is no bundle, or a file is missing, added or changed.
        UntrustedSourceError: an archive leaves its folder, or the signature is missing or wrong while
            ``public_key`` is given.
    """
    with contextlib.ExitStack() as stack:
        directory = path
        if not path.is_dir():
            work = Path(stack.enter_context(temporary("bundle")))
            directory = work / "bundle"
            _unpack(path, directory)
        has_signature = (directory / signing.SIGNATURE).is_file()
        # Before a byte of the files is trusted: the signature is over the list of their checksums.
        if public_key is not None:
            _check_signature(directory, has_signature, public_key)
        _check_sums(directory, path)
        if not (directory / descriptor.FILE_NAME).is_file():
            directory = _found(directory, stack)
        yield Bundle(
            directory=directory,
            descriptor=_checked(descriptor.read(directory / descriptor.FILE_NAME), directory),
            signed=public_key is not None,
            has_signature=has_signature,
        )


def _inside(folder: Path) -> list[Path]:
    """The descriptions of models in an app package, and the Android libraries that may have one."""
    found = islice((p for p in folder.rglob("*") if p.name == descriptor.FILE_NAME or p.suffix == ".aar"), 3)
    return [p for p in found if p.is_file() and not p.is_symlink()]


def _found(folder: Path, stack: contextlib.ExitStack) -> Path:
    """The folder of the one model in an app package; a library's assets are unpacked to a temporary folder."""
    inside = _inside(folder)
    if len(inside) != 1:
        what = f"no {descriptor.FILE_NAME}" if not inside else f"more than one {descriptor.FILE_NAME}"
        raise SourceError(f"{folder} has {what}", hint="name a package that edgekit package wrote")
    (file,) = inside
    if file.name == descriptor.FILE_NAME:
        return file.parent
    work = Path(stack.enter_context(temporary("library")))
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            _check_entries(file, entries)
            assets = [e for e in entries if e.filename.startswith("assets/")]
            for entry in assets:
                archive.extract(entry, work)
    except DAMAGED_ZIP as e:
        raise SourceError(f"{file} cannot be read as a library: {e}", hint=_REFUSE) from e
    models = [e for e in assets if PurePosixPath(e.filename).name == descriptor.FILE_NAME]
    if len(models) != 1:
        raise SourceError(f"{file} has {len(models)} models among its assets", hint=_REFUSE)
    return (work / models[0].filename).parent


def _is_ekz(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_EKZ)) == _EKZ
    except OSError:
        return False


def _models(files: Mapping[str, Content]) -> list[str]:
    return [name for name in files if name.startswith("model/") and PurePosixPath(name).suffix]


def _unpack(path: Path, directory: Path) -> None:
    try:
        if _is_ekz(path):
            from edgekit.entropy.container import usual_output

            most = min(MAX_BYTES, usual_output(path.stat().st_size))
            entropy.unpack(path, directory, max_output=most)
            return
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(path, entries)
            for entry in entries:
                archive.extract(entry, directory)
    except (*DAMAGED_ZIP, ContainerError) as e:
        raise SourceError(f"{path} cannot be read as a bundle: {e}", hint=_REFUSE) from e


def _check_entries(path: Path, entries: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for entry in entries:
        # The raw name: ZipInfo cuts filename at a null byte and rewrites separators.
        name, pure = entry.orig_filename, PurePosixPath(entry.orig_filename)
        escapes = (
            not pure.parts
            or pure.is_absolute()
            or ".." in pure.parts
            or "\\" in name
            or ":" in name
            or "\0" in name
        )
        special = stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR)
        if escapes or special:
            raise UntrustedSourceError(f"{path} has an entry that leaves its folder: {name!r}", hint=_REFUSE)
        # On Windows and macOS these are one file, and the second would replace what was checked.
        if name.casefold() in seen:
            raise UntrustedSourceError(f"{path} has two entries {name!r}", hint=_REFUSE)
        seen.add(name.casefold())
    if len(entries) > MAX_FILES:
        raise UntrustedSourceError(
            f"{path} has {len(entries):,} entries: no bundle has so many", hint=_REFUSE
        )
    # By what the archive declares: zipfile stops reading an entry there.
    if sum(e.file_size for e in entries) > MAX_BYTES:
        raise UntrustedSourceError(
            f"{path} unpacks to more than {MAX_BYTES >> 30} GiB", hint="unpack it by hand if you trust it"
        )


def _check_signature(directory: Path, present: bool, public_key: Path) -> None:
    if not present:
        raise UntrustedSourceError("the bundle is not signed, and a key was given", hint=_REFUSE)
    sums = _read(directory / writing.SUMS)
    signing.check(sums, _read(directory / signing.SIGNATURE), public_key)


def _check_sums(directory: Path, shown: Path) -> None:
    listed: dict[str, str] = {}
    for line in _read(directory / writing.SUMS).decode("utf-8", "replace").splitlines():
        digest, _, name = line.partition("  ")
        pure = PurePosixPath(name)
        if not name or pure.is_absolute() or ".." in pure.parts:
            raise UntrustedSourceError(f"{shown}: {writing.SUMS} names {name!r}", hint=_REFUSE)
        listed[name] = digest
    found = {p.relative_to(directory).as_posix(): p for p in directory.rglob("*") if not p.is_dir()}
    present = set(found)
    present -= {writing.SUMS, signing.SIGNATURE}
    # A link could point outside after its target was checked.
    links = sorted(n for n in present if (directory / n).is_symlink())
    if links:
        raise UntrustedSourceError(f"{shown} has links: {', '.join(links)}", hint=_REFUSE)
    special = sorted(name for name in present if not found[name].is_file())
    if special:
        raise UntrustedSourceError(f"{shown} has what is no file: {', '.join(special[:10])}", hint=_REFUSE)
    wrong = {
        "missing": set(listed) - present,
        "not listed": present - set(listed),
        "changed": {n for n in set(listed) & present if sha256_file(directory / n) != listed[n]},
    }
    differences = "; ".join(f"{', '.join(sorted(names))} {what}" for what, names in wrong.items() if names)
    if differences:
        raise SourceError(f"{shown} does not match its {writing.SUMS}: {differences}", hint=_REFUSE)


def _checked(described: Descriptor, directory: Path) -> Descriptor:
    """Every file that the descriptor names is one of the bundle's (and so inside, and checksummed)."""
    tensors = [t for c in described.golden.cases for t in descriptor.tensors(c)]
    images = [c.image.file for c in described.golden.cases if c.image]
    labels = [described.labels.file] if described.labels else []
    for name in (*described.files, *(t.file for t in tensors), *images, *labels):
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise UntrustedSourceError(f"{descriptor.FILE_NAME} names {name!r}", hint=_REFUSE)
        if not _is_file(directory / name):
            raise SourceError(f"the bundle lacks {name}, which {descriptor.FILE_NAME} names", hint=_REFUSE)
    _refuse_unknown_names(described)
    return described


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file can have
        return False


def _refuse_unknown_names(described: Descriptor) -> None:
    """Raise :class:`SourceError` where test vectors, labels or the contract speak of tensors that the model lacks."""
    inputs, outputs = {i.name for i in described.inputs}, {o.name for o in described.outputs}
    spoken = [({t.name for t in c.inputs}, inputs) for c in described.golden.cases]
    spoken += [({t.name for t in c.outputs}, outputs) for c in described.golden.cases]
    spoken += [({described.labels.output}, outputs)] if described.labels else []
    if (after := described.postprocessing) is not None:
        spoken += [({after.output} | ({after.boxes} if after.is_boxes else set()), outputs)]
    contract = described.preprocessing
    spoken += [({contract.input}, inputs)] if contract is not None and contract.input else []
    unknown = sorted({name for names, known in spoken for name in names - known})
    if unknown or not described.files:
        what = f"speaks of {', '.join(map(repr, unknown))}, which" if unknown else "names no file, and"
        raise SourceError(f"{descriptor.FILE_NAME} {what} the model does not have", hint=_REFUSE)
    if after is not None:
        try:
            postprocessing.check(after, described.outputs)
        except UsageError as e:
            raise SourceError(f"{descriptor.FILE_NAME}: {e}", hint=_REFUSE) from e
    if described.labels is None and any(c.label for c in described.golden.cases):
        raise SourceError(f"{descriptor.FILE_NAME} expects classes, and names none", hint=_REFUSE)


def _read(path: Path) -> bytes:
    try:
        return read(path)
    except OSError as e:
        raise SourceError(f"the bundle has no {path.name}: {e.strerror}", hint=_REFUSE) from e
