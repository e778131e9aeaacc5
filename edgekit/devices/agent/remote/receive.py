"""Receives one file on stdin into PATH.part, checks it, renames it. Arguments: path, size, sha256."""

import contextlib
import hashlib
import json
import os
import sys

path, size, digest = sys.argv[1], int(sys.argv[2]), sys.argv[3]
part = path + ".part"
answer = {"edgekit": 1, "ok": False}  # type: dict[str, object]
try:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    have, found = 0, hashlib.sha256()
    with open(part, "wb") as file:
        while have < size:
            data = os.read(0, min(1 << 20, size - have))
            if not data:
                break
            file.write(data)
            found.update(data)
            have += len(data)
        file.flush()
        os.fsync(file.fileno())
    if have != size or found.hexdigest() != digest:
        answer["error"] = "%d of %d bytes came, sha256 %s" % (have, size, found.hexdigest()[:16])
        os.unlink(part)
    else:
        os.rename(part, path)
        answer["ok"] = True
except OSError as error:
    answer["error"], answer["errno"] = error.strerror or str(error), error.errno
    with contextlib.suppress(OSError):
        os.unlink(part)
sys.stdout.write(json.dumps(answer) + "\n")
