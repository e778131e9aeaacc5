"""A bundle around a model file that the format itself wrote: replayed before it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgekit.errors import GateFailedError
from edgekit.package import bundle, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import encode
from edgekit.package.verifying import verify_bundle
from edgekit.types import sha256_bytes


def write(
    contents: Contents,
    file: str,
    model: bytes,
    out: Path,
    *,
    usage: str,
    beside: Mapping[str, Content] | None = None,
) -> None:
    """``out/file`` and the rest of the bundle in ``out``, without the artifact's own model files.

    ``beside`` are more files of the bundle.

    Raises :class:`GateFailedError` where ``model`` does not give the golden outputs on the runtime.
    """
    described = replace(contents.descriptor, files=(file,), model_sha256=sha256_bytes(model))
    files: dict[str, Content] = {n: c for n, c in contents.files.items() if not n.startswith("model/")}
    files |= {**(beside or {}), file: model, "edgekit.json": encode(described)}
    changed = replace(contents, descriptor=described, files=files)
    writing.write_tree(bundle.bundle_files(changed, usage=usage), out)
    # The written file and not the artifact's: it is another file, made by another tool.
    report = verify_bundle(out)
    if not report.passed:
        failed = "; ".join(f"{c.name}: {c.message}" for c in report.cases if c.message)
        raise GateFailedError(
            f"{file} does not give the golden outputs: {failed}",
            hint="report this with the artifact",
            gates=("golden",),
        )
