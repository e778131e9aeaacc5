"""A link in user space: a TCP relay that tests can black-hole, reset, slow down and mend."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time


class Link:
    """Relays loopback connections to ``port``. What is cut stays cut; :meth:`mend` lets new ones through."""

    def __init__(self, port: int, *, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self._target = port
        self._delay, self._rate = delay_s, bytes_per_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._open = threading.Event()
        self._open.set()
        self._dead: set[socket.socket] = set()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *exc: object) -> None:
        self._listener.close()
        self.reset()

    def black_hole(self) -> None:
        """From now on nothing passes, in either direction, and nobody is told."""
        self._open.clear()
        self._dead |= set(self._sockets)

    def reset(self) -> None:
        """Every connection ends with a RST, as after a router's restart."""
        self._dead |= set(self._sockets)
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads: only then is it really closed
                end.close()
        self._sockets.clear()

    def mend(self) -> None:
        """New connections pass again; those that were cut stay silent."""
        self._open.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            near.close()
            return
        self._sockets += [near, far]
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if source in self._dead:
                    return  # neither sent on nor closed: silence
                if self._delay:
                    time.sleep(self._delay)
                if self._rate:
                    time.sleep(len(data) / self._rate)
                sink.sendall(data)
        if source not in self._dead:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
