#!/usr/bin/env bash
# Makes the test-bed of devices: installs what Debian has, then the old board and the aarch64 board.
# What cannot be made is said, and its tests skip with the same words. Needs root for all but the old board.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-.venv/bin/python}"

if [[ "$(id -u)" == 0 ]] && command -v apt-get >/dev/null; then
    apt-get install --yes --quiet --no-install-recommends \
        openssh-client openssh-server qemu-user-static debootstrap iproute2 >/dev/null \
        || echo "test-bed: apt-get could not install everything (apt-get update first?)" >&2
else
    echo "test-bed: not root, or no apt-get: sshd and the aarch64 board are left as they are" >&2
fi
"$python" tools/testbed/oldboard.py || echo "test-bed: no old board" >&2
"$python" tools/testbed/arm64.py || echo "test-bed: no aarch64 board" >&2
