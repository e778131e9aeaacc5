"""Engines, for runtimes that build them on the device that runs them: what that device is, and one build."""

from __future__ import annotations

from .failure import JobError, failing_as
from .job import Job


def run(job: Job) -> None:
    """Do the job's ``identify`` or ``build``, and send what came of it."""
    try:
        # Packed beside this module where the backend has it, with its name.
        from . import backend, runner_build, runtimes  # type: ignore[attr-defined]
    except ImportError as error:
        raise JobError("internal", "this backend builds no engines: %s" % error) from error
    runtimes.use(backend.NAME)
    job.phase("identify")
    with failing_as("unusable"):
        found = runner_build.identify()
    if job.asked["action"] == "identify":
        job.channel.send("result", **found)
        return

    def progress(done: int) -> None:
        job.channel.send("progress", done=done)

    answer = runner_build.build(dict(job.asked["engine"]), found, job.phase, progress)
    job.channel.send("result", **answer)
