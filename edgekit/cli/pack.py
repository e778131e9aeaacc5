"""``edgekit pack`` and ``edgekit unpack``."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import click

from edgekit import entropy
from edgekit.artifact import manifest as manifests
from edgekit.artifact.summary import printable, size
from edgekit.cli._contained import contain, size_of
from edgekit.cli._options import Grouped, declared, json_flag
from edgekit.cli._output import print_json, table
from edgekit.core.config import Options
from edgekit.entropy import CODERS
from edgekit.errors import ContainerError, SourceError, UsageError

_UNPACK_S = 60.0
_UNPACK_S_PER_MB = 120.0
"""The slowest coder takes two seconds for a megabyte of a container; small machines ten times that."""

_LONGEST_NAME = 255


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="The container; default ARTIFACT.ekz.")
@click.option(
    "--coder",
    type=click.Choice(CODERS),
    default=CODERS[0],
    show_default=True,
    help="adaptive: the smallest file; huffman: the quickest decoder; zstd: Zstandard, for comparison.",
)
@json_flag
def pack(artifact: Path, out: Path | None, coder: str, as_json: bool) -> None:
    """Code ARTIFACT (a model file or a directory) without loss into a .ekz container.

    The container is decoded again before it appears, and compared byte for byte.
    """
    if out is None and artifact.name in ("", ".."):
        raise UsageError(
            f"{artifact} has no name that a container could be called by",
            hint="say what to create: --out FILE.ekz",
        )
    target = out if out is not None else artifact.with_name(artifact.name + ".ekz")
    contain(str(artifact), Options(out=target.parent), artifact)
    # What is packed damaged is damaged when it is unpacked.
    if os.path.lexists(artifact / manifests.FILE_NAME):
        manifests.check_files(manifests.read(artifact))
    report = entropy.pack(artifact, target, coder=coder)
    if as_json:
        print_json(
            {
                "path": str(report.path),
                "original_bytes": report.original,
                "packed_bytes": report.packed,
                "ratio": round(report.ratio, 4),
                "coder": coder,
                "tensors": report.tensors,
                "encode_seconds": round(report.encode_seconds, 3),
                "decode_seconds": round(report.decode_seconds, 3),
                "decode_mb_per_second": round(report.decode_mb_per_second, 3),
            }
        )
        return
    click.echo(
        f"{printable(str(report.path))}: {size(report.original)} → {size(report.packed)} ({report.ratio:.2f}×), "
        f"{report.tensors} tensors, decodes at {report.decode_mb_per_second:.2f} MB/s, verified"
    )


@click.command(cls=Grouped)
@click.argument("container", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="What to create; default: the name without .ekz."
)
@click.option("--list", "listing", is_flag=True, help="Only list the tensors.")
@click.option("--tensor", help="Write only this tensor, as .npy.")
@click.option(
    "--max-bytes",
    type=click.IntRange(min=1),
    help="Refuse to write more than this; default 1 GiB or 1,024 times the container, 64 GiB at most.",
)
@declared("unpack")
def unpack(
    container: Path,
    out: Path | None,
    listing: bool,
    tensor: str | None,
    max_bytes: int | None,
    options: Options,
) -> None:
    """Restore what `edgekit pack` coded, bit for bit. Nothing in CONTAINER is executed."""
    target = Path() if listing else _target(container, out, tensor)
    seconds = _UNPACK_S + _UNPACK_S_PER_MB * size_of(container) / 1e6
    contain(str(container), replace(options, out=target.parent), container, seconds=seconds)
    try:
        _unpack(container, target, listing, tensor, max_bytes)
    except ContainerError as e:
        raise e.about(str(container)) from e.__cause__


def _unpack(container: Path, target: Path, listing: bool, tensor: str | None, max_bytes: int | None) -> None:
    if listing:
        _list(container)
        return
    if tensor is not None:
        entropy.write_tensor(container, tensor, target, max_output=max_bytes)
        click.echo(printable(str(target)))
        return
    report = entropy.unpack(container, target, max_output=max_bytes)
    click.echo(printable(str(report.path)))
    click.echo(
        f"{size(report.size)} in {report.seconds:.2f} s, {report.mb_per_second:.2f} MB/s, checked", err=True
    )


def _target(container: Path, out: Path | None, tensor: str | None) -> Path:
    """What ``unpack`` is to create. Raises ``UsageError`` where that has no name of its own."""
    if out is not None:
        return out
    if not os.path.isfile(container):  # noqa: PTH113 - a name that no file can have is no file
        raise SourceError(f"there is no file {container}", hint="give the .ekz that `edgekit pack` wrote")
    if tensor is None:
        target = container.with_suffix("")
        if target == container:
            raise UsageError(
                f"what {container} holds would take its place: its name has no ending",
                hint="say what to create: --out PATH",
            )
        return target
    name = f"{tensor.replace('/', '_')}.npy"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise UsageError(
            f"no file can have the name of the tensor {tensor[:60]} …",
            hint="say what to create: --out FILE.npy",
        )
    return Path(name)


def _list(container: Path) -> None:
    with entropy.open(container) as c:
        rows = [
            (t.name, t.dtype.name, "×".join(map(str, t.shape)), t.form.name.lower()) for t in c.index.tensors
        ]
    table("tensors", ("name", "dtype", "shape", "stored"), rows)
