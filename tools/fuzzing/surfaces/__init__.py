"""What edgekit reads of others: seeds, how they are changed, and every way in which edgekit reads them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

NAMES = (
    "onnx", "tflite", "openvino", "engine", "ekz", "bundle", "manifest", "arrays", "pt2", "safetensors", "gguf", "toml",
    "device", "agent",
)  # fmt: skip
"""In the order of the table; each is a module here, with a class ``Surface``."""


class Surface(Protocol):
    """One kind of input. Seeds have file names; a changed seed keeps its name."""

    programs: tuple[str, ...]
    """Ends of the names of programs that it starts on purpose."""

    def seeds(self, folder: Path) -> dict[str, bytes]:
        """Small valid inputs by file name; ``folder`` is for what is written on the way."""
        ...

    def mutate(self, rng: object, name: str, data: bytes) -> bytes:
        """A hostile input."""
        ...

    def place(self, name: str, data: bytes, box: Path) -> None:
        """Put the input, and what belongs beside it, into the box."""
        ...

    def consume(self, name: str, data: bytes, box: Path) -> None:
        """Read it in every way there is; ``box/out`` may be written."""
        ...

    def command(self, name: str, data: bytes, box: Path) -> list[str]:
        """Arguments of the command line for the same input; none where there is no command."""
        ...


class Plain:
    """What most surfaces have in common: one file, nothing beside it, no programs."""

    programs: tuple[str, ...] = ()

    def place(self, name: str, data: bytes, box: Path) -> None:
        """Put the input into the box."""
        (box / name).write_bytes(data)


def surface(name: str) -> Surface:
    """The surface of this name; imports what it needs."""
    found: Surface = importlib.import_module(f"fuzzing.surfaces.{name}").Surface()
    return found
