"""A bundle whose model is in ORT format, which ONNX Runtime's reduced mobile builds read."""

from __future__ import annotations

from pathlib import Path

from edgekit.backends.onnxruntime.ortformat import write_ort
from edgekit.core.files import temporary
from edgekit.package import rewritten
from edgekit.package.contents import Contents
from edgekit.package.formats import Format

FORMAT = Format(
    help="a bundle whose model is in the format of ONNX Runtime's mobile builds",
    backends=("onnxruntime",),
    bundle=True,
)

_USAGE = """
`{file}` is for ONNX Runtime builds with or without ONNX support (`--minimal_build`). It was written with
extended optimizations, which do not depend on the CPU, and replayed after writing:

```sh
edgekit verify .
```"""


def write(contents: Contents, out: Path) -> None:
    """``<name>.ort`` and the rest of a bundle in ``out``."""
    file = f"{contents.spec.short_name}.ort"
    with temporary("ort") as folder:
        path = Path(folder) / file
        write_ort(contents.model, path)
        model = path.read_bytes()
    rewritten.write(contents, file, model, out, usage=_USAGE.format(file=file))
