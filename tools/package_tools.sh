#!/usr/bin/env bash
# Installs what the package tests check the app packages with: Android's packagers, a browser, and the npm tools.
# Debian or Ubuntu. Needs root (or sudo) for apt; the rest goes to $EDGEKIT_PACKAGE_TOOLS.
# Tests that miss one of these skip and name this script.
set -euo pipefail

tools="${EDGEKIT_PACKAGE_TOOLS:-${XDG_CACHE_HOME:-$HOME/.cache}/edgekit/package-tools}"
sudo=""
[ "$(id -u)" -eq 0 ] || sudo="sudo"

packages=(
  openjdk-17-jdk-headless maven gradle                # javac, the JVM that the DEX is run on, resolution
  aapt apksigner zipalign dexdump enjarify            # link, sign, align, list and decompile an APK
  android-framework-res libjna-java                   # what aapt2 links against; native calls from the JVM
  chromium gcc libc6-dev zip unzip npm
)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
# A program that did not come from a package (a node with its own npm) is as good.
for program in npm gcc; do
  if command -v "$program" >/dev/null; then
    missing=("${missing[@]/#$program/}")
  fi
done
wanted=()
for package in "${missing[@]}"; do [ -n "$package" ] && wanted+=("$package"); done
if [ "${#wanted[@]}" -gt 0 ]; then
  $sudo apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${wanted[@]}"
fi

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
(cd "$tools/npm" && npm install --no-audit --no-fund --loglevel=error)

# MediaPipe pins its own numpy and protobuf: a virtual environment of its own.
if ! "$tools/mediapipe/bin/python" -c 'import mediapipe' 2>/dev/null; then
  "${PYTHON:-python3}" -m venv "$tools/mediapipe"
  "$tools/mediapipe/bin/pip" install --quiet mediapipe==1.2.2
fi

# The only source of ai.onnxruntime classes with Linux natives on the Python index; 158 MB, unpacked once.
if [ ! -f "$tools/onnxruntime-jvm/onnxruntime.jar" ]; then
  work="$(mktemp -d)"
  trap 'rm -rf "$work"' EXIT
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary :all: -d "$work" pyserini==1.6.0
  "${PYTHON:-python3}" - "$work" "$tools/onnxruntime-jvm" <<'PY'
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
fi
echo "package tools are in $tools"
