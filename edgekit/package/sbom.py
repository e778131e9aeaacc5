"""A CycloneDX 1.6 bill of materials for one package: the model, what made it, what it needs to run.

https://cyclonedx.org/docs/1.6/json/ Without a timestamp and with a serial number from the content, so
that the same package has the same bill.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from edgekit.core import plugins
from edgekit.package.contents import Contents


def cyclonedx(contents: Contents) -> bytes:
    """The document as indented JSON."""
    d = contents.descriptor
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": f"{d.name}@{d.version}",
        "name": d.name,
        "version": d.version,
        "hashes": [{"alg": "SHA-256", "content": d.model_sha256}],
        "properties": _properties(
            {"target": d.target, "precision": str(d.precision), "source-sha256": d.source_sha256}
        ),
        "modelCard": {
            "modelParameters": {
                "inputs": [{"format": str(i)} for i in d.inputs],
                "outputs": [{"format": str(o)} for o in d.outputs],
            }
        },
    }
    if d.license:
        model["licenses"] = [{"expression": d.license}]
    # A package URL takes a version, not a sentence about two of them.
    version = version_number(d.runtime.minimum)
    runtime = {
        "type": "library",
        "bom-ref": d.runtime.name,
        "name": d.runtime.name,
        "version": version or "unspecified",
        "scope": "required",
    }
    if purl := plugins.info(d.backend).purl:
        runtime["purl"] = purl + (f"@{version}" if version else "")
    tools = [
        {"type": "library", "name": n, "version": v, "purl": f"pkg:pypi/{n}@{v}"}
        for n, v in sorted(d.converters.items())
    ]
    tools.append({"type": "application", "name": "edgekit", "version": d.edgekit})
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{_uuid(contents)}",
        "version": 1,
        "metadata": {"tools": {"components": tools}, "component": model},
        "components": [runtime],
        "dependencies": [
            {"ref": model["bom-ref"], "dependsOn": [runtime["bom-ref"]]},
            {"ref": runtime["bom-ref"], "dependsOn": []},
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def version_number(text: str) -> str:
    """The first dotted number in a text such as ``LiteRT 2.1 (TensorFlow Lite 2.17)``."""
    number = re.search(r"\d+(\.\d+)+", text)
    return number.group() if number else ""


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"edgekit:{k}", "value": v} for k, v in values.items() if v]


def _uuid(contents: Contents) -> uuid.UUID:
    described = contents.files["edgekit.json"]
    assert isinstance(described, bytes)
    return uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(described).hexdigest())
