"""An Android library (AAR) in a folder that Gradle takes as a Maven repository, and a sample app.

The wrapper is plain Java without dependencies but the runtime, which is one with a version; there is no
native code inside. It is compiled here, against declarations of the Android and runtime classes it calls.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from edgekit.core.files import temporary
from edgekit.errors import BackendError, ToolMissingError, UnsupportedError
from edgekit.package import android_contract, maven, readme, sbom, templates, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.coordinates import camel_case
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.types import TensorSpec

_DTYPES = frozenset({"float32", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"})
# Built-in rules of the Android Gradle plugin leave these uncompressed, so that they can be mapped.
_STORED = (".tflite", ".onnx", ".ort")

_USAGE = """
```kotlin
// settings.gradle.kts: dependencyResolutionManagement {{ repositories {{ maven {{ url = uri("PATH/maven") }} }} }}
implementation("{coordinates}")          // brings {runtime}{optional}
```

```kotlin
val model = {cls}.loadVerified(context)   // the first accelerator whose self-test passes, the CPU last
{call}
model.close()
```

From Java it reads the same. `model.selfTest()` runs the golden vectors on the phone. `sample/` is an app that
shows its report."""


def native(described: Descriptor) -> tuple[maven.Coordinates, ...]:
    """What brings the runtime's native libraries into the app, the optional ones too."""
    template = templates.load(described.backend, "android-aar").for_runtime(described.runtime.minimum)
    more = (need.split(":") for need in template.values["OPTIONAL"].split())
    return (
        _runtime(template),
        *(maven.Coordinates(group=g, artifact=a, version=v) for g, a, v in more),
    )


FORMAT = Format(help="an Android library in a Maven folder, and a sample app", template=True, native=native)


def write(contents: Contents, out: Path) -> None:
    """``maven/``, ``sample/``, README, LICENSE and bill of materials in ``out``."""
    described = contents.descriptor
    _check_dtypes(described)
    template = templates.load(described.backend, "android-aar").for_runtime(described.runtime.minimum)
    here = coordinates(described)
    needs = _runtime(template)
    files = template.filled(_values(described, here))
    sources = _sources(files, described)
    license_ = readme.license_text(contents)
    aar = writing.zip_bytes(
        {
            "AndroidManifest.xml": files["AndroidManifest.xml"],
            "classes.jar": compile_jar(sources, _below(files, "stubs/")),
            # The list of its resources: it has none.
            "R.txt": b"",
            "proguard.txt": files["proguard.txt"],
            **{f"assets/{asset_folder(described)}{n}": c for n, c in contents.files.items()},
            f"assets/{asset_folder(described)}LICENSE": license_,
        },
        stored=_STORED,
    )
    placed = maven.repository(
        here,
        needs,
        {"aar": aar, "-sources.jar": writing.zip_bytes(sources)},
        license_=described.license,
    )
    result: dict[str, Content] = {f"maven/{name}": content for name, content in placed.items()}
    result |= {name: data for name, data in files.items() if name.startswith("sample/")}
    shipped = sbom.Shipped(
        purl=f"pkg:maven/{here.group}/{here.artifact}?type=aar",
        runtime=f"pkg:maven/{needs.group}/{needs.artifact}",
        runtime_version=needs.version,
    )
    usage = _usage(described, template, here)
    writing.write_tree(result | readme.documents(contents, usage, shipped), out)


def _runtime(template: templates.Template) -> maven.Coordinates:
    return maven.Coordinates(
        group=template.values["RUNTIME_GROUP"],
        artifact=template.values["RUNTIME_ARTIFACT"],
        version=template.values["RUNTIME_VERSION"],
    )


def coordinates(described: Descriptor) -> maven.Coordinates:
    """``com.example.digits`` 1.0.0 is ``com.example:digits:1.0.0``."""
    group, artifact = described.name.rsplit(".", 1)
    return maven.Coordinates(group=group, artifact=artifact, version=described.version)


def class_name(described: Descriptor) -> str:
    """``com.example.hand_digits`` gives ``HandDigitsModel``."""
    return camel_case(described.name.rsplit(".", 1)[1]) + "Model"


def asset_folder(described: Descriptor) -> str:
    """Where the package's files are among an app's assets: apart from those of any other package."""
    return f"{described.name}/"


def compile_jar(sources: Mapping[str, Content], stubs: Mapping[str, Content]) -> bytes:
    """A jar of the compiled sources; ``stubs`` are compiled against and left out.

    Raises :class:`ToolMissingError` without a JDK and :class:`BackendError` where javac refuses.
    """
    javac = shutil.which("javac")
    if javac is None:
        raise ToolMissingError(
            "javac is not installed, and an AAR holds compiled classes",
            hint="install a JDK, version 11 or newer (Debian: apt install openjdk-17-jdk-headless)",
        )
    with temporary("javac") as folder:
        here = Path(folder)
        writing.write_tree(stubs, here / "stubs")
        writing.write_tree(sources, here / "src")
        _javac(javac, here)
        classes = {
            p.relative_to(here / "classes").as_posix(): p.read_bytes()
            for p in (here / "classes").rglob("*.class")
        }
    return writing.zip_bytes({n: c for n, c in classes.items() if _own(n, sources)})


def _javac(javac: str, here: Path) -> None:
    (here / "classes").mkdir()
    command = [javac, "--release", _release(javac), "-encoding", "UTF-8", "-g:source,lines", "-nowarn"]
    command += ["-Xlint:-options", "-sourcepath", "stubs", "-implicit:none", "-d", "classes"]
    command += sorted(p.relative_to(here).as_posix() for p in (here / "src").rglob("*.java"))
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(
            f"javac refuses the wrapper:\n{done.stderr.strip()[-3000:]}",
            hint="report this with the package id and the artifact's manifest",
        )


def _release(javac: str) -> str:
    """Class files of Java 7, the oldest that dexers know, while the JDK still writes them (up to 19)."""
    done = subprocess.run([javac, "-version"], capture_output=True, text=True, check=False)
    version = re.search(r"javac (\d+)", done.stdout + done.stderr)
    return "7" if version and 9 <= int(version[1]) < 20 else "8"


def _own(name: str, sources: Mapping[str, Content]) -> bool:
    outer = PurePosixPath(name).with_suffix("").as_posix().split("$")[0]
    return f"{outer}.java" in sources


def _sources(files: Mapping[str, bytes], described: Descriptor) -> dict[str, Content]:
    folder = described.name.replace(".", "/")
    sources: dict[str, Content] = {f"{folder}/{n}": data for n, data in _below(files, "src/").items()}
    sources[f"{folder}/Contract.java"] = android_contract.source(described, asset_folder(described))
    return sources


def _below(files: Mapping[str, bytes], prefix: str) -> dict[str, Content]:
    return {n.removeprefix(prefix): data for n, data in files.items() if n.startswith(prefix)}


def _values(described: Descriptor, here: maven.Coordinates) -> dict[str, str]:
    return {
        "ID": described.name,
        "NAME": described.name,
        "FOLDER": described.name.replace(".", "/"),
        "SHORT": here.artifact,
        "CLASS": class_name(described),
        "VERSION": described.version,
        "TARGET": described.target,
        "GROUP": here.group,
        "ARTIFACT": here.artifact,
    }


def _check_dtypes(described: Descriptor) -> None:
    for spec in (*described.inputs, *described.outputs):
        if spec.dtype not in _DTYPES:
            raise UnsupportedError(
                f"the Java wrapper does not take {spec.dtype} ({spec})",
                hint="build the artifact with float32 inputs and outputs (the default)",
            )


def _usage(described: Descriptor, template: templates.Template, here: maven.Coordinates) -> str:
    optional = template.values["OPTIONAL"].split()
    return _USAGE.format(
        coordinates=f"{here.group}:{here.artifact}:{here.version}",
        runtime=f"{template.values['RUNTIME_GROUP']}:{template.values['RUNTIME_ARTIFACT']}:"
        f"{template.values['RUNTIME_VERSION']}",
        optional="".join(f'\nimplementation("{o}")   // for the GPU' for o in optional),
        cls=class_name(described),
        call=_call(described),
    )


def _call(described: Descriptor) -> str:
    """One call in Kotlin, that compiles: on an image, or on a tensor for every input."""
    if described.preprocessing is not None and len(described.inputs) == 1:
        return {
            "predict": "val outputs = model.predict(bitmap)",
            "classify": "val best = model.classify(bitmap, 3)     // label and score",
            "detect": "val boxes = model.detect(bitmap)",
        }[described.image_method]
    if len(described.inputs) == 1:
        return f"val outputs = model.run({_tensor(described.inputs[0])})"
    inputs = "".join(f"    {json.dumps(i.name)} to {_tensor(i)},\n" for i in described.inputs)
    return f"val outputs = model.run(mapOf(\n{inputs}))"


def _tensor(spec: TensorSpec) -> str:
    """Zeros in Kotlin, 1 for what is dynamic."""
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    sizes, count = "".join(f", {d}" for d in shape), math.prod(shape)
    if array := {"float32": "FloatArray", "int32": "IntArray", "int64": "LongArray"}.get(spec.dtype):
        return f"Tensor.of({array}({count}){sizes})"
    return f'Tensor.of(ByteArray({count}), "{spec.dtype}"{sizes})'
