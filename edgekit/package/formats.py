"""The formats of packages by name, as plug-ins bring them, and which artifacts each can carry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

from edgekit.core import plugins
from edgekit.errors import PluginError
from edgekit.package import templates
from edgekit.package.contents import Contents
from edgekit.package.descriptor import Descriptor
from edgekit.package.maven import Coordinates


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of package.

    Attributes:
        help: one line for people.
        backends: whose artifacts it can carry; empty for any.
        template: it is filled from a backend's ``package/<format>/``, so that it carries what has one.
        one_file: what loads the model there takes its main file only.
        bundle: what it writes is a bundle, with its own checksums.
        tokenizer: it takes a tokenizer's files (``--tokenizer``).
        native: the Maven coordinates that bring native libraries into the app.
    """

    help: str
    backends: tuple[str, ...] = ()
    template: bool = False
    one_file: bool = True
    bundle: bool = False
    tokenizer: bool = False
    native: Callable[[Descriptor], tuple[Coordinates, ...]] | None = None


@runtime_checkable
class Writer(Protocol):
    """A module that writes packages of one format."""

    FORMAT: Format

    def write(self, contents: Contents, out: Path) -> None:
        """Write the package's files into the folder ``out``, which is there and empty."""
        ...


def writers() -> Mapping[str, Writer]:
    """Every format's module by the format's name. Raises :class:`PluginError` for one that does not fit."""
    modules = {name: plugins.module("formats", name) for name in plugins.table("formats")}
    for name, module in modules.items():
        if not isinstance(module, Writer):
            raise PluginError(
                f"{module.__name__} does not write the package format {name!r}",
                hint="it needs FORMAT and write(contents, out), see edgekit.package.formats",
            )
    return cast("dict[str, Writer]", modules)


def carries(name: str, format_: Format, backend: str) -> bool:
    """Whether packages of the format called ``name`` can carry a backend's artifacts."""
    fits = not format_.backends or backend in format_.backends
    return fits and (not format_.template or templates.exists(backend, name))
