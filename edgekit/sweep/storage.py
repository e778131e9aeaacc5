"""What the nodes of a cluster share, over fsspec: results of cells, and steps of the cache.

An object is there as a whole or not at all. A cell's files come first and its result last: who sees the result finds
the rest.
"""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgekit.core import files
from edgekit.core.foreign import translated
from edgekit.errors import BackendError, ContainerError, MissingExtraError, first_line

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl")
_MOST_BYTES = 16 << 30
"""Of one archive, unpacked."""


class Storage:
    """Objects by name below a URL: ``file:///shared/sweep``, ``s3://bucket/sweep``, ``gs://…``."""

    def __init__(self, url: str) -> None:
        """Open it. Raises :class:`MissingExtraError` where nothing that is installed reads such URLs."""
        self.url = url
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError("fsspec, which reads and writes storage", "ray") from error
        protocol = url.partition("://")[0] if "://" in url else "file"
        try:
            self._fs, self._root = fsspec.core.url_to_fs(
                url, **({"auto_mkdir": True} if protocol == "file" else {})
            )
        except ImportError:
            self._fs, self._root = _over_obstore(url, protocol)
        except ValueError as error:
            raise BackendError(f"{url} is no storage: {first_line(error)}", hint=_HINT) from error
        self._local = protocol == "file"

    def put(self, name: str, data: bytes) -> None:
        """Write an object. Raises :class:`BackendError` where the storage refuses it."""
        path = f"{self._root}/{name}"
        with translated(self.url, hint=_HINT, kind=BackendError):
            if not self._local:
                self._fs.pipe_file(path, data)
                return
            part = f"{self._root}/.part-{secrets.token_hex(8)}"
            self._fs.pipe_file(part, data)
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            Path(part).replace(path)

    def get(self, name: str) -> bytes | None:
        """An object; ``None`` where there is none. Raises :class:`BackendError`."""
        with translated(self.url, hint=_HINT, kind=BackendError):
            try:
                return bytes(self._fs.cat_file(f"{self._root}/{name}"))
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """The names of the objects in a folder. Raises :class:`BackendError`."""
        with translated(self.url, hint=_HINT, kind=BackendError):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(f"{self._root}/{folder}", detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)


_HINT = "check the URL, the network and the credentials that its file system reads (AWS_…, GOOGLE_…)"


def _over_obstore(url: str, protocol: str) -> tuple[Any, str]:
    """S3, Google's and Azure's storage by obstore, where fsspec's own implementation is not installed."""
    try:
        if protocol not in _OBJECT_STORES:
            raise ImportError(protocol)
        from obstore.fsspec import FsspecStore
    except ImportError as error:
        raise MissingExtraError(f"what reads {protocol}:// URLs", "ray") from error
    return FsspecStore(protocol), url.partition("://")[2].rstrip("/")


def packed(root: Path, paths: Iterable[Path]) -> bytes:
    """Files and folders below ``root`` as one archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in paths:
            archive.add(path, path.relative_to(root).as_posix())
    return buffer.getvalue()


def unpacked(data: bytes, folder: Path) -> None:
    """What :func:`packed` made, into an empty folder. Raises :class:`ContainerError` for what leads elsewhere."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = archive.getmembers()
            if sum(m.size for m in members) > _MOST_BYTES or not all(
                m.isfile() or m.isdir() for m in members
            ):
                raise ContainerError(
                    "an archive of the storage holds what no sweep puts there", hint=_DISTRUST
                )
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, *files.DAMAGED_ZIP) as error:
        raise ContainerError(f"an archive of the storage cannot be read: {error}", hint=_DISTRUST) from error


_DISTRUST = "somebody else writes to this storage, or it is damaged: name another one (--storage URL)"
