"""The ways to a device: this machine, OpenSSH, adb. Each offers :class:`transport.Transport`.

In come files and commands as lists of arguments; out come bytes, lines and exit codes, or a typed error that says what
to do. Nothing above this folder knows which way a device has.
"""
