"""An npm package for React Native: the modules of the web package over ONNX Runtime's React Native binding.

Files are read by a function that the app gives, because React Native has no common way to ship and read them.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.package import readme, templates, web, writing
from edgekit.package.contents import Content, Contents
from edgekit.package.formats import Format

FORMAT = Format(help="an npm package over onnxruntime-react-native", template=True)

_SHARED = ("index.js", "index.d.ts", "model.js", "postprocess.js", "preprocess.js")
_USAGE = """
```sh
npm install {name} onnxruntime-react-native
```

```js
import {{ Model }} from "{name}";

// However the app ships the package's assets folder; with react-native-fs for example:
const read = async (name) => toBytes(await RNFS.readFileAssets(`{name}/${{name}}`, "base64"));
const model = await Model.loadVerified({{ accelerators: ["cpu"], read }});
{call}
```

The modules were run with ONNX Runtime Web behind the same interface when this template was tested, not on a
phone: call `selfTest()` there once."""


def write(contents: Contents, out: Path) -> None:
    """The package's folder, ready for ``npm pack`` or ``npm publish``."""
    described = contents.descriptor
    web.check_dtypes(described)
    template = templates.load(described.backend, "react-native").for_runtime(described.runtime.minimum)
    shared = templates.load(described.backend, "web").filled({"NAME": described.name})
    files: dict[str, Content] = {name: shared[name] for name in _SHARED}
    files |= template.filled({})
    files |= {f"assets/{name}": content for name, content in contents.files.items()}
    files["package.json"] = web.manifest(contents, template)
    usage = _USAGE.format(name=described.name, call=web.call(described))
    writing.write_tree(files | readme.documents(contents, usage, web.shipped(contents, template)), out)
