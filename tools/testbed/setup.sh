#!/usr/bin/env bash
# Makes the test-bed of devices as far as this machine allows: what Debian has (root only), then the Arm boards and the
# old board, side by side, each with a time limit. About a minute on a fresh machine, nothing where all is there.
# What cannot be made is said, and its tests skip with the same words; this never fails. EDGEKIT_TESTBED names another
# folder than ~/.cache/edgekit-testbed; EDGEKIT_TESTBED=none makes nothing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

[[ "${EDGEKIT_TESTBED:-}" == none || "$(uname -s)" != Linux ]] && exit 0
python="${PYTHON:-.venv/bin/python}"
cache="${EDGEKIT_TESTBED:-${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}/edgekit-testbed}"
mkdir -p "$cache/why" 2>/dev/null || { echo "test-bed: cannot write $cache" >&2; exit 0; }
exec 9>"$cache/lock"
flock -w 300 9 || { echo "test-bed: another run holds $cache/lock" >&2; exit 0; }

debian() {
    local -A of=([sshd]=openssh-server [ssh]=openssh-client [qemu-aarch64-static]=qemu-user-static
        [debootstrap]=debootstrap [ip]=iproute2 [adb]=adb [mksh]=mksh)
    local program wanted=()
    for program in "${!of[@]}"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || wanted+=("${of[$program]}")
    done
    [[ ${#wanted[@]} -eq 0 ]] && return
    if [[ "$(id -u)" != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "test-bed: not root, or no apt-get: install by hand ${wanted[*]}" >&2
        return
    fi
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::http::Timeout=20 -o Acquire::Retries=1
        -o DPkg::Lock::Timeout=120)
    local install=(install --yes --no-install-recommends)
    # Only the download is cut off: a package manager that is stopped while it unpacks leaves a broken system.
    if timeout 60 "${apt[@]}" update && timeout 90 "${apt[@]}" "${install[@]}" --download-only "${wanted[@]}" >/dev/null
    then
        "${apt[@]}" "${install[@]}" "${wanted[@]}" >/dev/null 9>&- || echo "test-bed: apt-get failed" >&2
    else
        echo "test-bed: apt-get cannot download ${wanted[*]}" >&2
    fi
}

# part NAME SECONDS COMMAND…: its reason is left in why/NAME, where the tests look for it.
part() {
    local name=$1 limit=$2 status=0 log
    shift 2
    log="$(mktemp)"
    timeout --kill-after=10 "$limit" "$@" >/dev/null 2>"$log" </dev/null 9>&- || status=$?
    rm -f "$cache/why/$name"
    if [[ $status -ne 0 ]]; then
        [[ $status -eq 124 ]] && echo "not done within $limit s" >>"$log"
        { grep -v '^[[:space:]]*$' "$log" || echo "exit status $status"; } | tail -n 1 | cut -c 1-300 >"$cache/why/$name"
        echo "test-bed: $name: $(cat "$cache/why/$name")" >&2
    fi
    rm -f "$log"
}

debian
part oldboard 120 "$python" tools/testbed/oldboard.py &
part arm64 240 "$python" tools/testbed/boards.py arm64 &
part armhf 240 "$python" tools/testbed/boards.py armhf &
wait
rm -rf "$cache"/making-*
exit 0
