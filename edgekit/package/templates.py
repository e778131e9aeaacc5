"""Templates of the app packages: ``targets/<backend>/package/<format>/`` over ``targets/common/package/<format>/``.

``common`` holds what must be the same for every runtime, above all the preprocessing arithmetic. Each
backend's folder has a ``template.toml`` with the template's version and the values that it fills in.
Placeholders are ``@NAME@``; one without a value is an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.core import plugins
from edgekit.errors import PluginError, UnsupportedError

RECORD = "template.toml"
_PLACEHOLDER = re.compile(r"@([A-Z][A-Z_]*)@")
# Copied as they are.
_BINARY = frozenset({".jar", ".png"})


_NUMBER = re.compile(r"\d+(\.\d+)+")


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@dataclass(frozen=True, kw_only=True)
class Template:
    """The files of one format for one backend, placeholders unfilled.

    ``newer`` has other values for artifacts whose minimum runtime, spelt as in the manifest, is beyond that of
    ``values``.
    """

    version: int
    values: Mapping[str, str]
    files: Mapping[str, bytes]
    newer: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def for_runtime(self, minimum: str) -> Template:
        """The template with the values for an artifact that needs ``minimum``.

        Raises :class:`UnsupportedError` where that is newer than the runtime that the template depends on.
        """
        values = {**self.values, **self.newer.get(minimum, {})}
        given = values.get("RUNTIME_VERSION", "").removeprefix("^")
        if _NUMBER.fullmatch(minimum) and _NUMBER.fullmatch(given) and _parts(minimum) > _parts(given):
            raise UnsupportedError(
                f"the model needs version {minimum} of its runtime, and this format depends on {given}",
                hint="export it with an older operator set, or use the bundle format",
            )
        return replace(self, values=values)

    def filled(self, values: Mapping[str, str]) -> dict[str, bytes]:
        """The files with every placeholder replaced, in names too."""
        known = {**self.values, **values}
        return {fill(name, known): _filled(name, data, known) for name, data in self.files.items()}


def load(backend: str, format_: str) -> Template:
    """Read a template. Raises :class:`UnsupportedError` where the backend has none for the format."""
    module_owner = plugins.backends().get(backend)
    own = module_owner[1].data / backend / "package" / format_ if module_owner else None
    if own is None or not (own / RECORD).is_file():
        raise UnsupportedError(
            f"there is no {format_} template for {backend}", hint="edgekit package --help lists the formats"
        )
    record = tomllib.loads((own / RECORD).read_text(encoding="utf-8"))
    if set(record) - {"values", "newer"} != {"version"}:
        raise PluginError(
            f"{own / RECORD} has the keys {', '.join(record)}", hint="it has version, [values] and [newer]"
        )
    common = plugins.data_dir() / "targets" / "common" / "package" / format_
    files = {**_files(common), **_files(own)}
    files.pop(RECORD)
    values, newer = record.get("values", {}), record.get("newer", {})
    return Template(version=int(record["version"]), values=values, files=files, newer=newer)


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its placeholders replaced."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise PluginError(
                f"a template asks for {match[1]}, which nothing gives", hint="correct the template"
            )
        return values[match[1]]

    return _PLACEHOLDER.sub(value, text)


def _filled(name: str, data: bytes, values: Mapping[str, str]) -> bytes:
    return fill(data.decode(), values).encode() if Path(name).suffix not in _BINARY else data


def _files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
