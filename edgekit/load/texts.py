"""Text that language models are measured on and calibrated with: a user's file, else prose that Python brings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.core import files
from edgekit.errors import DataError
from edgekit.load.data import DataSpec
from edgekit.types import sha256_bytes

_MOST_BYTES = 64 << 20
_SUFFIXES = (".txt", ".md", ".rst")


@dataclass(frozen=True, kw_only=True)
class Text:
    """``name`` says where it is from."""

    name: str
    content: str

    @property
    def sha256(self) -> str:
        """Of the content."""
        return sha256_bytes(self.content.encode("utf-8", "surrogatepass"))


def given(data: DataSpec | None, *, part: int) -> Text:
    """The text that ``data`` names, a UTF-8 file; without it the reference manual of Python that the interpreter
    carries (``pydoc_data.topics``), every other topic of it: ``part`` 0 or 1, so that what is measured was not
    calibrated with.

    Raises :class:`DataError` for anything else.
    """
    if data is None or data == "":
        return _manual(part)
    if not isinstance(data, str | Path) or Path(data).suffix.lower() not in _SUFFIXES:
        raise DataError(
            f"{data} is no text: a language model is calibrated with and measured on text",
            hint=f"name a file of UTF-8 text ({', '.join(_SUFFIXES)}), or leave it out",
        )
    path = Path(data)
    try:
        content = files.read(path, most=_MOST_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as text: {error}",
            hint="name a file of UTF-8 text; a few hundred kB are enough",
        ) from error
    return Text(name=path.name, content=content)


def _manual(part: int) -> Text:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python has no manual to take text from",
            hint="name a text file: --calib FILE.txt --eval FILE.txt",
        ) from error
    chosen = sorted(topics)[part::2]
    return Text(
        name=f"Python's manual (pydoc_data.topics), part {part}",
        content="\n\n".join(topics[t] for t in chosen),
    )
