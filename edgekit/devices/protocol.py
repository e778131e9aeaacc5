"""How the messages of :mod:`edgekit.devices.wire` are written and read: JSON, one a line, and no line is believed.

What a device sends becomes a message of the type that is expected or a :class:`~edgekit.errors.DeviceError`; texts lose
their control characters on the way, since they end on terminals and in manifests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from edgekit.core import contained
from edgekit.devices.wire import Count, Message, Text
from edgekit.errors import DeviceError
from edgekit.types import Json

T = TypeVar("T")

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
"""Control characters but for tabs and line feeds, those that turn the direction of writing or break lines, those that
nobody sees, and halves of characters, which no terminal can be sent."""


def plain(text: str) -> str:
    """``text`` without what would move a terminal's cursor or turn its writing."""
    return _CONTROL.sub("", text)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): _plain(item) for key, item in value.items()}
    return value


def decode(text: str | bytes, kind: type[T], *, device: str) -> T:
    """One message of ``kind``. Raises :class:`DeviceError` for anything else."""
    try:
        return msgspec.convert(_plain(msgspec.json.decode(text)), kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise malformed(device, text, str(error)) from error


def malformed(device: str, message: str | bytes, problem: str) -> DeviceError:
    """The error for a message that is not of the protocol."""
    shown = message.decode("utf-8", "replace") if isinstance(message, bytes) else message
    return DeviceError(
        f"{device} sent a line that is not of the agent's protocol: {shown[:120]!r} ({plain(problem)[:200]})",
        hint="check that nothing on the device writes to stdout at log-in (~/.bashrc and the like)",
    )


class Events:
    """The events of one process of the agent: in sequence, by type, and not more than ``most`` of them."""

    def __init__(self, device: str, kinds: Mapping[str, type[Message]], most: int) -> None:
        self._device, self._kinds, self._most = device, kinds, most
        self._seen = 0

    def read(self, text: str) -> Message:
        """The next event. Raises :class:`DeviceError` where it is not of the protocol, or one was lost."""
        contained.beat()
        envelope = decode(text, _Envelope, device=self._device)
        self._seen += 1
        if envelope.seq != self._seen:
            raise DeviceError(
                f"a message of {self._device} was lost: got number {envelope.seq}, expected {self._seen}",
                hint="the connection is not reliable; run it again",
            )
        if self._seen > self._most:
            raise DeviceError(
                f"{self._device} sent more than {self._most} messages", hint="this is no agent of edgekit's"
            )
        if envelope.event not in self._kinds:
            raise malformed(self._device, text, f"the event {envelope.event!r} is not known")
        return decode(text, self._kinds[envelope.event], device=self._device)


class _Envelope(Message, frozen=True):
    seq: Count
    event: Text


def encode(message: Message | Sequence[Message]) -> bytes:
    """One line for the device."""
    return msgspec.json.encode(message) + b"\n"


def builtins(message: Message) -> dict[str, Json]:
    """The message as the members of a JSON document."""
    members: dict[str, Json] = msgspec.to_builtins(message)
    return members
