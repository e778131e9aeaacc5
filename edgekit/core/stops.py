"""Stops that were asked for, by Ctrl-C or a signal.

Python raises them wherever it happens to be. A library that catches everything there, as imports inside of
``torch.export`` do, goes on with half of what it began; so what was asked for is kept, and looked at before a result is
believed.
"""

from __future__ import annotations


class Left(SystemExit):
    """Code called ``os._exit`` or ``os.exec*`` in a process that goes on: ``call`` is what it wrote."""

    def __init__(self, call: str, code: int | str) -> None:
        super().__init__(code)
        self.call = call


_asked: KeyboardInterrupt | None = None


def ask(stop: KeyboardInterrupt) -> None:
    """Raise ``stop``, and keep it."""
    global _asked
    _asked = stop
    raise stop


def check() -> None:
    """Raise the stop again that was asked for, if somebody swallowed it."""
    if _asked is not None:
        raise _asked


def handled() -> None:
    """It was obeyed: what was at work has ended, and the rest may go on (a search that keeps its best)."""
    global _asked
    _asked = None
