"""The vendor's packages: the model and a label."""

from pathlib import Path

from edgekit.package.contents import Contents
from edgekit.package.formats import Format

FORMAT = Format(help="a box", backends=("acme",))


def write(contents: Contents, out: Path) -> None:
    (out / "model.box").write_bytes(contents.model.read_bytes())
    (out / "LABEL").write_text(f"{contents.spec.name} for {contents.descriptor.runtime.name}\n")
