"""How long each operator takes: a run of its own, since runtimes are slower while they look at themselves."""

from __future__ import annotations

from .failure import JobError, failing_as
from .job import Job, Session


def profile(job: Job, session: Session) -> None:
    """Warm up, let the session profile ``runs`` invocations, and send what it tells.

    The result's ``profile`` is ``Session.profile``'s: ``operators`` in order of execution, each with ``name``,
    ``op``, ``us`` (microseconds a run; null where the runtime does not tell), ``placed`` (what executed it),
    ``precision``, ``from`` (names in the file, empty where it made the operator itself); ``whole_us``: the same
    runs as a whole; ``notes``.
    """
    settings = job.asked["profile"]
    if not hasattr(session, "profile"):
        raise JobError("load", "this runtime's runner cannot profile")
    job.first_sample(session)
    job.phase("warm-up")
    with failing_as("invoke"):
        for _ in range(int(settings["warmup"])):
            session.invoke()
        job.phase("profile")
        report = session.profile(int(settings["runs"]))
    job.channel.send("result", profile=report, threads=job.options()["threads"], seconds=job.seconds)
