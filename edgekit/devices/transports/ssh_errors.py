"""What OpenSSH's exit status and stderr mean, and what to do: status 255 stands for every failure of its own."""

from __future__ import annotations

from edgekit.errors import DeviceError, UnreachableError

_KNOWN = (
    (
        "remote host identification has changed",
        "its host key has changed: this may be another machine, or somebody in between",
        "if you know why (a reinstalled system), remove the old key with ssh-keygen -R HOST, then look at the "
        "new one: edgekit devices trust {device}",
    ),
    (
        "host key verification failed",
        "its host key is not known",
        "compare its fingerprint with the device's, then trust it: edgekit devices trust {device}",
    ),
    (
        "permission denied",
        "it refuses the log-in",
        "put your public key there (ssh-copy-id), or load it into your agent (ssh-add)",
    ),
    (
        "could not resolve hostname",
        "its name cannot be resolved",
        "check the spelling, ~/.ssh/config and DNS",
    ),
    ("connection refused", "nothing listens there for ssh", "start sshd on the device, or correct the port"),
    ("connection timed out", "it does not answer", "check its power, the network and the address"),
    ("no route to host", "there is no way to it", "check its power, the network and the address"),
    ("network is unreachable", "there is no way to it", "check the network here"),
    ("connection closed", "it closed the connection", "look at the log of sshd on the device"),
    ("connection reset", "it reset the connection", "look at the log of sshd on the device"),
    (
        "too many authentication failures",
        "it refuses the log-in",
        "set IdentitiesOnly for it in ~/.ssh/config",
    ),
    ("bad configuration option", "the ssh configuration is wrong", "correct the file named above"),
)


def explain(status: int, stderr: str, device: str, program: str) -> DeviceError:
    """The error for a client that ended with ``status`` and said ``stderr``."""
    lowered = stderr.lower()
    tail = stderr.strip()[-500:]
    said = f" ({tail.splitlines()[-1].strip()})" if tail else ""
    if status == 127 or "command not found" in lowered:
        return DeviceError(
            f"{device} has no {program}{said}",
            hint='install Python 3.8 or newer there, or name it in the device\'s row: python = "/path/to/python3"',
        )
    if status == 126 or "exec format error" in lowered:
        return DeviceError(
            f"{device} cannot execute {program}{said}",
            hint="the program is for another architecture, or not executable: check the device's row",
        )
    for text, what, hint in _KNOWN:
        if text in lowered:
            return UnreachableError(
                f"cannot connect to {device}: {what}{said}", hint=hint.format(device=device)
            )
    if status == 255:
        return UnreachableError(f"cannot connect to {device}{said}", hint="try it by hand: ssh -v HOST true")
    return DeviceError(
        f"{device} ended the session with status {status}{said}", hint="try it by hand: ssh HOST"
    )


def silent(device: str, seconds: float) -> UnreachableError:
    """The error for a client that was ended after ``seconds`` and had said nothing."""
    return UnreachableError(
        f"cannot connect to {device}: ssh neither connected nor failed within {seconds:.0f} s",
        hint="a name server that does not answer, or a command of ~/.ssh/config that waits, looks so: "
        "see where it stops with ssh -v HOST true",
    )
