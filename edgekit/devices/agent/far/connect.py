"""Opens a session on the device. Argument: the private folder to go on with, or an empty string.

Makes the private folder, removes stale ones of the same user, says where it is and what this machine is, then
waits until the host hangs up.
"""

import fcntl
import json
import os
import shutil
import sys
import tempfile
import time

MARKER = ".edgekit"
STALE_S = 15 * 60  # longer than any host tries to come back


def boot() -> str:
    """Another text after each start of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


def base() -> str:
    """The first folder that can be written: on some boards the temporary one is read-only."""
    places = (os.environ.get("TMPDIR"), tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~"))  # noqa: S108
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
    """Mark the folder as in use until this process ends; False if another session does."""
    descriptor = os.open(os.path.join(folder, MARKER), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    os.utime(descriptor)
    return True  # the descriptor stays open: it is the lock


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
            folder = tempfile.mkdtemp(prefix="edgekit-", dir=place)
            with open(os.path.join(folder, MARKER), "w") as file:
                json.dump({"boot": boot()}, file)
        if os.path.isfile(os.path.join(folder, MARKER)):
            hold(folder)
        report["exists"] = os.path.isfile(os.path.join(folder, MARKER))
        report["root"] = folder
    except OSError as error:
        report["error"] = error.strerror or str(error)
        report["errno"] = error.errno
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass


main()
