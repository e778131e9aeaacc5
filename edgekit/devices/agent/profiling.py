"""How long each operator takes: a run of its own, since runtimes are slower while they look at themselves."""

from __future__ import annotations

from typing import Any

from .worker import JobError, Worker, _describe


def profile(worker: Worker, session: Any) -> None:
    """Warm up, let the session profile ``runs`` invocations, and send what it tells.

    The result's ``profile`` is ``Session.profile``'s: ``operators`` in order of execution, each with ``name``,
    ``op``, ``us`` (microseconds a run; null where the runtime does not tell), ``placed`` (what executed it),
    ``precision``, ``from`` (names in the file, empty where it made the operator itself); ``whole_us``: the same
    runs as a whole; ``notes``.
    """
    settings = worker.job["profile"]
    if not hasattr(session, "profile"):
        raise JobError("load", "this runtime's runner cannot profile")
    with open(worker.job["inputs"]["path"], "rb") as file:
        session.prepare(next(worker.samples(session, file)))
    worker.phase("warm-up")
    try:
        for _ in range(int(settings["warmup"])):
            session.invoke()
        worker.phase("profile")
        found = session.profile(int(settings["runs"]))
    except Exception as error:
        raise JobError("invoke", _describe(error)) from error
    worker.channel.send("result", profile=found, threads=worker.options()["threads"], seconds=worker.seconds)
