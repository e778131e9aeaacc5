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
    ``values``. ``dtypes`` are those of tensors that the runtime's interface takes there.
    """

    version: int
    values: Mapping[str, str]
    files: Mapping[str, bytes]
    newer: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dtypes: frozenset[str] = frozenset()

    def for_runtime(self, minimum: str) -> Template:
        """The template with the values for an artifact that needs ``minimum``.

        Raises :class:`UnsupportedError` where that is newer than the runtime that the template depends on.
        """
        values = {**self.values, **self.newer.get(minimum, {})}
        depends_on = values.get("RUNTIME_VERSION", "").removeprefix("^")
        if (
            _NUMBER.fullmatch(minimum)
            and _NUMBER.fullmatch(depends_on)
            and _parts(minimum) > _parts(depends_on)
        ):
            raise UnsupportedError(
                f"the model needs version {minimum} of its runtime, and this format depends on {depends_on}",
                hint="export it with an older operator set, or use the bundle format",
            )
        return replace(self, values=values)

    def filled(self, values: Mapping[str, str]) -> dict[str, bytes]:
        """The files with every placeholder replaced, in names too."""
        placeholders = {**self.values, **values}
        return {
            fill(name, placeholders): _filled(name, data, placeholders) for name, data in self.files.items()
        }


def exists(backend: str, format_: str) -> bool:
    """Whether a backend has a template of the format."""
    return backend in plugins.backends() and (_folder(backend, format_) / RECORD).is_file()


def load(backend: str, format_: str) -> Template:
    """Read a template. Raises :class:`UnsupportedError` where the backend has none for the format."""
    if not exists(backend, format_):
        raise UnsupportedError(
            f"there is no {format_} template for {backend}", hint="edgekit package --help lists the formats"
        )
    own = _folder(backend, format_)
    record = tomllib.loads((own / RECORD).read_text(encoding="utf-8"))
    if set(record) - {"values", "newer", "dtypes"} != {"version"}:
        raise PluginError(
            f"{own / RECORD} has the keys {', '.join(record)}",
            hint="it has version, dtypes, [values] and [newer]",
        )
    common = plugins.data_dir() / "targets" / "common" / "package" / format_
    # The backend's own file wins over the common one of the same name.
    files = {**_files(common), **_files(own)}
    files.pop(RECORD)
    return Template(
        version=int(record["version"]),
        values=record.get("values", {}),
        files=files,
        newer=record.get("newer", {}),
        dtypes=frozenset(record.get("dtypes", ())),
    )


def _folder(backend: str, format_: str) -> Path:
    return plugins.backends()[backend][1].data / backend / "package" / format_


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
