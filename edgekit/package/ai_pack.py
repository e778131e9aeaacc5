"""A Gradle module for Play for On-device AI: the model is delivered by the store, apart from the app's code.

The assets are those of the Android library, in the same places; with install-time delivery its wrapper finds
them through the app's AssetManager.
"""

from __future__ import annotations

from pathlib import Path

from edgekit.package import readme, templates, writing
from edgekit.package.android_aar import asset_folder
from edgekit.package.contents import Content, Contents
from edgekit.package.formats import Format

FORMAT = Format(help="a Gradle module that Google Play delivers the model with", template=True)

_USAGE = """
Copy `{pack}/` beside your app's module, then:

```kotlin
// settings.gradle.kts
include(":{pack}")
// app/build.gradle.kts
android {{ assetPacks += listOf(":{pack}") }}
```

The files are at `{folder}` among the app's assets, where the `android-aar` package of the same artifact looks
for them. The module was not built with the Android Gradle plugin when this template was tested."""


def write(contents: Contents, out: Path) -> None:
    """The module's folder, README, LICENSE and bill of materials."""
    described = contents.descriptor
    pack = f"{contents.spec.short_name}_pack"
    folder = asset_folder(described)
    template = templates.load(described.backend, "ai-pack")
    files: dict[str, Content] = dict(template.filled({"PACK": pack}))
    files |= {f"{pack}/src/main/assets/{folder}{name}": content for name, content in contents.files.items()}
    usage = _USAGE.format(pack=pack, folder=folder)
    writing.write_tree(files | readme.documents(contents, usage), out)
