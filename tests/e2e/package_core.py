"""The C core of Swift packages, built with gcc over ONNX Runtime's headers and its library from the wheel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import package_tools as tools

HEADERS = "com.github.asus4.onnxruntime/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers"

MAIN = """
#include "@MODULE@Core.h"
#include <stdio.h>
int main(int argc, char **argv) {
    char error[512] = "";
    @P@_model *m = @P@_load(argv[argc - 1], error, sizeof error);
    if (!m) { printf("error %s\\n", error); return 1; }
    int passed = 1;
    for (size_t i = 0; i < @P@_case_count(); i++) {
        @P@_case c;
        passed &= @P@_self_test(m, i, &c);
        printf("%s %d %.17g %s\\n", c.name, c.passed, c.error, c.message);
    }
    @P@_free(m);
    return passed ? 0 : 2;
}
"""


def compile_core(core: Path, out: Path, *more: str | Path) -> None:
    tools.need("gcc")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off"]
    done = subprocess.run(
        ["gcc", *flags, "-I", core / "include", "-o", out, *more, "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def link_options(core: Path, prefix: str, work: Path) -> list[str | Path]:
    """A ``main`` that runs the self-test, and what it is compiled and linked with."""
    import onnxruntime

    headers = tools.NODE_MODULES / HEADERS
    tools.need(headers, "readelf")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    main = MAIN.replace("@MODULE@", core.name.removesuffix("Core")).replace("@P@", prefix)
    (work / "main.c").write_text(main)
    soname = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    if f"[{library.name}]" not in soname:  # the wheel carries the file under its full version only
        (work / soname.split("SONAME")[1].split("[")[1].split("]")[0]).symlink_to(library)
    sources = [work / "main.c", *sorted(core.glob("*.c"))]
    return ["-I", headers, *sources, library, f"-Wl,-rpath,{library.parent}"]


def self_test(program: Path, assets: Path) -> subprocess.CompletedProcess[str]:
    """What the program says of the package's golden vectors."""
    environment = {"LD_LIBRARY_PATH": str(program.parent), "ORT_DISABLE_TELEMETRY": "1"}
    return subprocess.run([program, assets], capture_output=True, text=True, env=environment, check=False)
