"""An npm package for React Native: the modules of the web package over a binding of the runtime.

Files are read by a function that the app gives, because React Native has no common way to ship and read them.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import UnsupportedError
from edgekit.package import readme, templates, web, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.package.templates import Template

FORMAT = Format(
    help="an npm package over onnxruntime-react-native or react-native-fast-tflite", template=True
)

_SHARED = ("index.js", "index.d.ts", "model.js", "postprocess.js", "preprocess.js")
_USAGE, _OPTIONS = "usage.md", "options.d.ts"


def write(contents: Contents, out: Path) -> None:
    """The package's folder, ready for ``npm pack`` or ``npm publish``."""
    described = contents.descriptor
    template = templates.load(described.backend, "react-native").for_runtime(described.runtime.minimum)
    _check(described, template)
    shared = templates.load(described.backend, "web").filled({"NAME": described.name})
    values = {"NAME": described.name, "MODEL": described.files[0], "CALL": web.call(described)}
    own = template.filled(values)
    usage = own.pop(_USAGE).decode().rstrip()
    files: dict[str, Content] = {name: shared[name] for name in _SHARED}
    # An interface that is declared twice has the members of both.
    files["index.d.ts"] = shared["index.d.ts"] + own.pop(_OPTIONS, b"")
    files |= own
    files |= {f"assets/{name}": content for name, content in contents.files.items()}
    files["package.json"] = web.manifest(contents, template)
    writing.write_tree(files | readme.documents(contents, usage, web.shipped(contents, template)), out)


def _check(described: Descriptor, template: Template) -> None:
    if not template.values["RUNTIME_VERSION"]:
        raise UnsupportedError(
            f"{described.target} needs {described.runtime.minimum}; {template.values['RUNTIME_PACKAGE']} brings less",
            hint="build another target (INT8 instead of INT4), or use the android-aar format",
        )
    if not template.dtypes:
        web.check_dtypes(described)
        return
    for spec in (*described.inputs, *described.outputs):
        # Of a number without axes the binding gives no bytes.
        if spec.dtype not in template.dtypes or not spec.shape:
            raise UnsupportedError(
                f"{template.values['RUNTIME_PACKAGE']} does not take {spec}",
                hint="build the artifact with float32 inputs and outputs (the default) that have an axis",
            )
