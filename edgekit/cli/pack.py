"""``edgekit pack`` and ``edgekit unpack``."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit import entropy
from edgekit.artifact.summary import size
from edgekit.cli._contained import contain
from edgekit.cli._options import json_flag
from edgekit.cli._output import print_json, table
from edgekit.core.config import Options
from edgekit.core.files import whole
from edgekit.entropy import CODERS


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
    target = out if out is not None else artifact.with_name(artifact.name + ".ekz")
    contain(str(artifact), Options(out=target.parent), artifact)
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
        f"{report.path}: {size(report.original)} → {size(report.packed)} ({report.ratio:.2f}×), "
        f"{report.tensors} tensors, decodes at {report.decode_mb_per_second:.2f} MB/s, verified"
    )


@click.command()
@click.argument("container", type=click.Path(path_type=Path))
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="What to create; default: the name without .ekz."
)
@click.option("--list", "listing", is_flag=True, help="Only list the tensors.")
@click.option("--tensor", help="Write only this tensor, as .npy.")
@click.option(
    "--max-bytes", type=click.IntRange(min=1), help="Refuse to write more than this; default 64 GiB."
)
def unpack(
    container: Path, out: Path | None, listing: bool, tensor: str | None, max_bytes: int | None
) -> None:
    """Restore what `edgekit pack` coded, bit for bit. Nothing in CONTAINER is executed."""
    if listing:
        with entropy.open(container) as c:
            rows = [
                (t.name, t.dtype.name, "×".join(map(str, t.shape)), t.form.name.lower())
                for t in c.index.tensors
            ]
        table("tensors", ("name", "dtype", "shape", "stored"), rows)
        return
    if tensor is not None:
        _write_tensor(container, tensor, out)
        return
    target = out if out is not None else container.with_suffix("")
    report = entropy.unpack(container, target, max_output=max_bytes)
    click.echo(str(report.path))
    click.echo(
        f"{size(report.size)} in {report.seconds:.2f} s, {report.mb_per_second:.2f} MB/s, checked", err=True
    )


def _write_tensor(container: Path, name: str, out: Path | None) -> None:
    import numpy as np

    target = out if out is not None else Path(f"{name.replace('/', '_')}.npy")
    with entropy.open(container) as c:
        array = c[name]
    with whole(target) as temporary, temporary.open("wb") as f:
        np.save(f, array, allow_pickle=False)
    click.echo(str(target))
