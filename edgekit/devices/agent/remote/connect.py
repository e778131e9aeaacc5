"""Opens a session on the device. Argument: the private folder to go on with, or an empty string.

Makes the private folder, removes stale ones of the same user, says where it is and what this machine is, then
listens: the host sends a line every few seconds. When its end of stdin is closed while the connection still stands,
the host has ended (it may have been killed) and the folder goes with it. When the connection broke, when nothing
was heard for a while, or when the host said ``keep``, the folder stays: a host that comes back goes on in it.
"""

import contextlib
import fcntl
import json
import os
import select
import shutil
import sys
import tempfile
import time

MARKER = ".edgekit"
STALE_S = 15 * 60  # longer than any host tries to come back
QUIET_S = 45  # nine of the host's lines


def boot() -> str:
    """Another text after each start of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def base() -> str:
    """The first folder that can be written: on some boards the temporary one is read-only."""
    places = [os.environ.get("TMPDIR"), "/var/tmp", os.path.expanduser("~")]  # noqa: S108
    with contextlib.suppress(OSError):  # it found none that can be written
        places.insert(1, tempfile.gettempdir())
    for place in places:
        if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return place
    raise OSError(30, "no folder can be written: tried " + ", ".join(str(p) for p in places))


def clean(place: str) -> None:
    """Remove folders that carry our marker, are ours, that no session holds, and that were left a while ago."""
    for name in os.listdir(place):
        path = os.path.join(place, name)
        marker = os.path.join(path, MARKER)
        try:
            if (
                not name.startswith("edgekit-")
                or os.path.islink(path)
                or os.lstat(path).st_uid != os.getuid()
            ):
                continue
            with open(marker) as file:
                owner = json.load(file)
            if owner["boot"] != boot() or (time.time() - os.stat(marker).st_mtime > STALE_S and hold(path)):
                shutil.rmtree(path, ignore_errors=True)
        except (OSError, ValueError, KeyError):
            continue


def hold(folder: str) -> bool:
    """Mark the folder as in use until this process ends; False if another session does, or if it is gone."""
    try:
        descriptor = os.open(os.path.join(folder, MARKER), os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    os.utime(descriptor)
    return True  # the descriptor stays open: it is the lock


def listen(folder: str) -> bool:
    """Until the host is gone. True if it ended with the connection standing, and did not say ``keep``."""
    said, held = b"", hold(folder)
    while select.select([0], [], [], QUIET_S)[0]:
        data = os.read(0, 4096)
        if not data:
            if b"keep" in said or not os.path.isdir(folder):
                return False
            ear = select.poll()
            ear.register(1, 0)
            return not ear.poll(500)  # sshd closes its end at once when the connection breaks
        said = said[-8:] + data
        held = held or hold(folder)  # the session before this one may have held it
        with contextlib.suppress(OSError):
            os.utime(os.path.join(folder, MARKER))  # should the connection break now, it is not stale yet
    return False


def remove(folder: str) -> None:
    """What is still at work in it is ending, and gets a moment."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(0.1)


def made(place: str) -> str:
    """A new private folder with our marker; a disk that is full leaves none."""
    folder = tempfile.mkdtemp(prefix="edgekit-", dir=place)
    try:
        with open(os.path.join(folder, MARKER), "w") as file:
            json.dump({"boot": boot()}, file)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def main() -> None:
    """Report, and stay."""
    report = {
        "edgekit": 1,
        "python": list(sys.version_info[:3]),
        "boot_id": boot(),
        "home": os.path.expanduser("~"),
    }
    try:
        folder = sys.argv[1]
        if not folder:
            place = base()
            clean(place)
            folder = made(place)
        report["exists"] = os.path.isfile(os.path.join(folder, MARKER))
        report["root"] = folder
    except OSError as error:
        report["error"] = error.strerror or str(error)
        report["errno"] = error.errno
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    if report.get("exists") and listen(folder):
        remove(folder)


main()
