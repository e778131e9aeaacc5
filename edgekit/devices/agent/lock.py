"""One benchmark a device: a lock that ends with its process, and that says who holds it."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import suppress
from typing import Optional

from .channel import Message

_ADDRESS = "\0edgekit-device" + os.environ.get("EDGEKIT_LOCK", "")
"""A name in Linux's abstract namespace: no file to leave behind, no permissions to get wrong, one a network
namespace (so one a container or device), gone with the process that holds it. ``EDGEKIT_LOCK`` makes another:
for tests that run side by side and whose figures nobody reads."""


class Lock:
    """Held until the process ends or :meth:`release`. Who asks for the address is told ``owner``."""

    def __init__(self, listener: socket.socket, owner: Message) -> None:
        self._listener = listener
        self._answer = json.dumps(owner).encode("utf-8")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, suppress(OSError):
                peer.sendall(self._answer)

    def release(self) -> None:
        """Let others have the device."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def acquire(owner: Message) -> Optional[Lock]:
    """The lock, or ``None`` when another process holds it (see :func:`holder`)."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(_ADDRESS)
    except OSError:
        listener.close()
        return None
    listener.listen(8)
    return Lock(listener, owner)


def holder() -> Message:
    """Who holds the lock: what it passed to :func:`acquire`; empty if it does not say."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2)
        try:
            client.connect(_ADDRESS)
            data = b""
            while True:
                part = client.recv(4096)
                if not part or len(data) > 65536:
                    break
                data += part
            answer = json.loads(data.decode("utf-8"))
        except (OSError, ValueError):
            return {}
    return answer if isinstance(answer, dict) else {}
