"""A CycloneDX 1.6 bill of materials for one package: what it is in its ecosystem, the model, the runtime, what made it.

Through the library of CycloneDX' own project, without a timestamp and with a serial number from the content, so that
the same package has the same bill.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.licenses import canonicalize_license_expression

from edgekit.core import plugins
from edgekit.package.contents import Contents

if TYPE_CHECKING:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import LicenseExpression
    from packageurl import PackageURL

WRAPPER_LICENSE = "Apache-2.0"
"""Of the code that a package has around its model."""

_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What an app package is where it is published, and what it depends on there.

    Attributes:
        purl: its package URL without the version; empty where its ecosystem has none for what is not published.
        runtime: the runtime's, of the same ecosystem, without the version.
        runtime_version: the version that the package asks for, ``^1.30.0`` for example.
    """

    purl: str = ""
    runtime: str
    runtime_version: str


def cyclonedx(contents: Contents, shipped: Shipped | None = None) -> bytes:
    """The document as indented JSON. Without ``shipped`` the package is the model itself, as in a bundle."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    bom = Bom(serial_number=_uuid(contents))
    # The library stamps the time of day.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    model, runtime = _model(contents), _runtime(contents, shipped)
    bom.components.add(runtime)
    for tool in _tools(contents):
        bom.metadata.tools.components.add(tool)
    if shipped is None:
        bom.metadata.component = model
        bom.register_dependency(model, [runtime])
    else:
        library = _library(contents, shipped)
        bom.metadata.component = library
        bom.components.add(model)
        bom.register_dependency(library, [model, runtime])
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    return text.encode() + b"\n"


def _model(contents: Contents) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    d = contents.descriptor
    facts = {"target": d.target, "precision": str(d.precision), "source-sha256": d.source_sha256}
    facts |= {f"input:{i.name}": str(i) for i in d.inputs} | {f"output:{o.name}": str(o) for o in d.outputs}
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_MODEL,
        name=d.name,
        version=d.version,
        licenses=_licenses(d.license),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=d.model_sha256)],
        properties=_properties(facts),
    )


def _library(contents: Contents, shipped: Shipped) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    d = contents.descriptor
    both = canonicalize_license_expression(f"({d.license}) AND {WRAPPER_LICENSE}") if d.license else ""
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref="package",
        name=d.name,
        version=d.version,
        licenses=_licenses(WRAPPER_LICENSE if d.license in ("", WRAPPER_LICENSE) else both),
        purl=_purl(shipped.purl, d.version),
    )


def _runtime(contents: Contents, shipped: Shipped | None) -> Component:
    from cyclonedx.model.component import Component, ComponentScope, ComponentType

    d = contents.descriptor
    purl = shipped.runtime if shipped else plugins.info(d.backend).purl
    asked = shipped.runtime_version if shipped else d.runtime.minimum
    # A package URL takes a version, not a range. A bundle asks for none: its minimum may be none that was published.
    version = version_number(asked) if shipped else ""
    return Component(
        type=ComponentType.LIBRARY,
        bom_ref="runtime",
        name=d.runtime.name,
        version=version or None,
        scope=ComponentScope.REQUIRED,
        purl=_purl(purl, version),
        properties=_properties({"asked-for": asked if asked != version else ""}),
    )


def _tools(contents: Contents) -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    d = contents.descriptor
    found = [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"tool:{name}",
            purl=PackageURL("pypi", None, name, version) if _PROJECT.fullmatch(name) else None,
        )
        for name, version in sorted(d.converters.items())
        if name != "edgekit"
    ]
    # The package index knows another project by this name.
    edgekit = Component(
        type=ComponentType.APPLICATION, name="edgekit", version=d.edgekit, bom_ref="tool:edgekit"
    )
    return [*found, edgekit]


# An artifact may come from anybody, and names what made it as it likes; python is no project of the Python index.
_PROJECT = re.compile(r"(?!python$)[A-Za-z0-9][A-Za-z0-9._-]*")


def _purl(text: str, version: str) -> PackageURL | None:
    from packageurl import PackageURL

    if not text:
        return None
    return PackageURL.from_string(text)._replace(version=version or None)


def _licenses(expression: str) -> list[LicenseExpression]:
    from cyclonedx.model.license import LicenseExpression

    return [LicenseExpression(expression)] if expression else []


def version_number(text: str) -> str:
    """The first dotted number in a text such as ``LiteRT 2.1 (TensorFlow Lite 2.17)``."""
    number = re.search(r"\d+(\.\d+)+", text)
    return number.group() if number else ""


def _properties(values: Mapping[str, str]) -> list[Property]:
    from cyclonedx.model import Property

    return [Property(name=f"edgekit:{k}", value=v) for k, v in values.items() if v]


def _uuid(contents: Contents) -> uuid.UUID:
    described = contents.files["edgekit.json"]
    assert isinstance(described, bytes)
    return uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(described).hexdigest())
