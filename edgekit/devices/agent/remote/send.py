"""Sends one file on stdout: its size as a line of JSON, the bytes, a line with their sha256. Argument: path."""

import hashlib
import json
import os
import sys

try:
    file = open(sys.argv[1], "rb")  # noqa: SIM115 - until this process ends
except OSError as error:
    sys.stdout.write(json.dumps({"edgekit": 1, "error": error.strerror or str(error)}) + "\n")
    sys.exit(0)
size = os.fstat(file.fileno()).st_size
sys.stdout.write(json.dumps({"edgekit": 1, "size": size}) + "\n")
sys.stdout.flush()
digest = hashlib.sha256()
left = size
while left:
    data = file.read(min(1 << 20, left))
    if not data:
        break
    digest.update(data)
    sys.stdout.buffer.write(data)
    left -= len(data)
sys.stdout.buffer.write(digest.hexdigest().encode() + b"\n")
