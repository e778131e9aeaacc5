"""What libraries raise when they cannot read a user's file, as one typed error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edgekit.errors import EdgekitError, SourceError, first_line


@contextlib.contextmanager
def translated(message: str, *, hint: str, kind: type[EdgekitError] = SourceError) -> Iterator[None]:
    """Turn whatever a library raises inside into ``kind``: ``message``, and the first line of the library's."""
    try:
        yield
    except EdgekitError:
        raise
    # torch, transformers, onnx and Pillow raise anything on a damaged file, from struct.error to RecursionError,
    # and none of them documents what.
    except Exception as error:
        raise kind(f"{message}: {first_line(error)}", hint=hint) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a library in Rust ends with is no Exception
            raise
        raise kind(f"{message}: {first_line(error)}", hint=hint) from error
