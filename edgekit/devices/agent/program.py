"""Runs a vendor's benchmark tool in place of a runner, under the supervisor like every other task."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress

from .failure import JobError
from .job import Job

_MOST = 8 << 20


def run(job: Job) -> None:
    """Run the job's ``argv`` to its end; the result has the last of what it printed, and the text of ``file``."""
    argv, path = job.asked["argv"], job.asked["file"]
    job.phase("program")
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise JobError("program", "%s cannot be executed: %s" % (argv[0], error.strerror)) from error
    text = done.stdout[-_MOST:].decode("utf-8", "replace")
    if done.returncode:
        last = text.strip()[-1500:]
        raise JobError("program", "%s ended with %d; its last output:\n%s" % (argv[0], done.returncode, last))
    written = ""
    with suppress(OSError):
        with open(path, encoding="utf-8", errors="replace") as file:
            written = file.read(_MOST)
        os.unlink(path)
    job.channel.send("result", text=text, file=written)
