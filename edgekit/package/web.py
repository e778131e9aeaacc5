"""An npm package: ES modules with type declarations over ONNX Runtime Web or LiteRT.js.

Written as it is published: no build step. ``selftest.html`` runs the golden vectors in a browser.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from edgekit.core import plugins
from edgekit.errors import UnsupportedError
from edgekit.package import narrowed, readme, sbom, templates, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.descriptor import Descriptor
from edgekit.package.formats import Format
from edgekit.types import TensorSpec

FORMAT = Format(
    help="an npm package (ESM and type declarations) over onnxruntime-web or @litertjs/core", template=True
)

_USAGE = """
```sh
npm install {name} {runtime}
```

```js
import {{ Model }} from "{name}";

const model = await Model.loadVerified({{ wasmUrl: "/wasm/" }});   // WebGPU if its self-test passes, else WebAssembly
{call}
```

Serve the package's `assets/` folder, and the runtime's WebAssembly files ({wasm}). With a bundler,
say where: `Model.load({{ baseUrl: "/assets/", wasmUrl: "/wasm/" }})`.
`selftest.html` runs the golden vectors: serve `node_modules` and open `{name}/selftest.html`."""


def write(contents: Contents, out: Path) -> None:
    """The package's folder, ready for ``npm pack`` or ``npm publish``."""
    backend = contents.descriptor.backend
    template = templates.load(backend, "web").for_runtime(contents.descriptor.runtime.minimum)
    contents = narrowed.fitted(contents, template.dtypes)
    described = contents.descriptor
    check_dtypes(described)
    values = {"NAME": contents.spec.name}
    files: dict[str, Content] = {f"assets/{name}": content for name, content in contents.files.items()}
    files |= template.filled(values)
    files["package.json"] = manifest(contents, template)
    usage = _USAGE.format(
        name=contents.spec.name,
        runtime=template.values["RUNTIME_PACKAGE"],
        wasm=f"node_modules/{template.values['WASM_URL'].removeprefix('../')}",
        call=call(described),
    )
    writing.write_tree(files | readme.documents(contents, usage, shipped(contents, template)), out)


def shipped(contents: Contents, template: templates.Template) -> sbom.Shipped:
    """The npm package and the npm package that it runs on."""
    return sbom.Shipped(
        purl=f"pkg:npm/{contents.spec.name}",
        runtime="pkg:npm/" + template.values["RUNTIME_PACKAGE"].replace("@", "%40"),
        runtime_version=template.values["RUNTIME_VERSION"],
    )


def manifest(contents: Contents, template: templates.Template) -> bytes:
    """``package.json``. The runtime is a peer: the app decides which copy it loads."""
    described = contents.descriptor
    document = {
        "name": contents.spec.name,
        "version": contents.spec.version,
        "description": f"{described.target} model with its preprocessing, labels and self-test",
        "license": contents.spec.license or "SEE LICENSE IN LICENSE",
        "type": "module",
        "exports": {
            ".": {"types": "./index.d.ts", "default": "./index.js"},
            "./assets/*": "./assets/*",
            "./package.json": "./package.json",
        },
        "types": "./index.d.ts",
        # Lets a bundler drop what an app does not import.
        "sideEffects": False,
        "peerDependencies": {template.values["RUNTIME_PACKAGE"]: template.values["RUNTIME_VERSION"]}
        | dict.fromkeys(template.values.get("PEERS", "").split(), "*"),
        "edgekit": {"template": template.version, "edgekit": described.edgekit},
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def check_dtypes(described: Descriptor) -> None:
    """Raise :class:`UnsupportedError` for tensors that the runtime's JavaScript interface does not take."""
    for spec in (*described.inputs, *described.outputs):
        if not _takes(described.backend, spec.dtype):
            able = [name for name in plugins.backends() if _takes(name, spec.dtype)]
            other = f", or for {plugins.info(able[0]).title}, which takes {spec.dtype}" if able else ""
            raise UnsupportedError(
                f"{described.runtime.name} in JavaScript does not take {spec.dtype} ({spec})",
                hint=f"build the artifact with float32 inputs and outputs{other}",
            )


def _takes(backend: str, dtype: str) -> bool:
    return templates.exists(backend, "web") and dtype in templates.load(backend, "web").dtypes


def call(described: Descriptor) -> str:
    """One call, that compiles: on an image, or on a tensor for every input."""
    if described.preprocessing is not None and len(described.inputs) == 1:
        more = ", 3" if described.image_method == "classify" else ""
        what = f"{described.image_method}(imageData{more})"
        return f"const result = await model.{what};   // imageData: RGB or RGBA bytes with width and height"
    inputs = "\n".join(f"  {json.dumps(i.name)}: {_tensor(i)}," for i in described.inputs)
    return f"const outputs = await model.run({{\n{inputs}\n}});"


_ARRAYS = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "int64": "BigInt64Array",
    "uint64": "BigUint64Array",
    "int32": "Int32Array",
    "uint32": "Uint32Array",
    "int16": "Int16Array",
    "uint16": "Uint16Array",
    "int8": "Int8Array",
}


def _tensor(spec: TensorSpec) -> str:
    """Zeros in JavaScript. A bare array has the declared shape; a dynamic one is said."""
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    data = f"new {_ARRAYS.get(spec.dtype, 'Uint8Array')}({math.prod(shape)})"
    if all(isinstance(d, int) for d in spec.shape):
        return data
    return f'{{ dtype: "{spec.dtype}", shape: {json.dumps(shape)}, data: {data} }}'
