"""Bounded reading and writing of the container's small structures: LEB128 integers and byte strings."""

from __future__ import annotations

from edgekit.errors import ContainerError

_MOST_SAID = 400
"""Characters of a message: it may quote a name, which the file may have made long."""


class Writer:
    """Appends to a byte string."""

    def __init__(self) -> None:
        self.data = bytearray()

    def uint(self, value: int) -> None:
        """An unsigned integer, 7 bits a byte, least significant first."""
        if value < 0:
            raise ValueError(f"{value} is negative")
        while value >= 0x80:
            self.data.append(value & 0x7F | 0x80)
            value >>= 7
        self.data.append(value)

    def sint(self, value: int) -> None:
        """A signed integer, zigzag."""
        self.uint(value * 2 if value >= 0 else -value * 2 - 1)

    def uints(self, values: list[int]) -> None:
        """A counted list."""
        self.uint(len(values))
        for value in values:
            self.uint(value)

    def blob(self, value: bytes) -> None:
        """A counted byte string."""
        self.uint(len(value))
        self.data += value

    def text(self, value: str) -> None:
        """A counted UTF-8 string; undecodable names survive."""
        try:
            data = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half a pair, which JSON can spell and no file's name has
            data = value.encode("utf-8", "replace")
        self.blob(data)


class Reader:
    """Reads what :class:`Writer` wrote. Raises ``ContainerError`` past the end or beyond a limit."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self.at

    def uint(self, limit: int = 1 << 62) -> int:
        """An unsigned integer not above ``limit``."""
        value = shift = 0
        while True:
            if self.at >= len(self._data) or shift > 63:
                raise malformed("a number is cut off")
            byte = self._data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if value > limit:
            raise malformed(f"{value} is above the limit {limit}")
        return value

    def sint(self) -> int:
        """A signed integer."""
        value = self.uint()
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def uints(self, limit: int) -> list[int]:
        """A counted list of at most ``limit`` numbers."""
        return [self.uint() for _ in range(self.uint(min(limit, self.left)))]

    def blob(self, limit: int = 1 << 62) -> memoryview:
        """A counted byte string."""
        return self.take(self.uint(limit))

    def take(self, size: int) -> memoryview:
        """``size`` bytes."""
        if size > self.left:
            raise malformed("it ends too early")
        out = self._data[self.at : self.at + size]
        self.at += size
        return out

    def text(self, limit: int = 1 << 16) -> str:
        """A counted UTF-8 string."""
        return bytes(self.blob(limit)).decode("utf-8", "surrogateescape")

    def end(self) -> None:
        """Raise unless everything was read."""
        if self.left:
            raise malformed(f"{self.left} bytes too many")


def malformed(what: str) -> ContainerError:
    """The error of every reader in this package."""
    return ContainerError(
        f"not a valid .ekz container: {what if len(what) <= _MOST_SAID else what[:_MOST_SAID] + ' …'}",
        hint="the file is damaged: copy or pack it again",
    )
