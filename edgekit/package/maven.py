"""A folder that Gradle and Maven take as a repository: POM, Gradle module metadata, checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from edgekit.package import writing
from edgekit.package.contents import Content

_CHECKSUMS = ("md5", "sha1", "sha256", "sha512")


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """``group:artifact:version``."""

    group: str
    artifact: str
    version: str

    @property
    def folder(self) -> str:
        """Where the version's files are, relative to the repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}"

    @property
    def stem(self) -> str:
        """``artifact-version``."""
        return f"{self.artifact}-{self.version}"


def repository(
    here: Coordinates, needs: Coordinates, files: Mapping[str, Content], *, license_: str
) -> dict[str, Content]:
    """Everything in the repository. ``files`` has ``aar`` and ``-sources.jar``, by ending of the name."""
    folder = here.folder
    placed: dict[str, Content] = {
        f"{folder}/{here.stem}{'' if ending.startswith('-') else '.'}{ending}": content
        for ending, content in files.items()
    }
    placed[f"{folder}/{here.stem}.pom"] = _pom(here, needs, license_)
    placed[f"{folder}/{here.stem}.module"] = _module(here, needs, placed)
    placed[f"{here.folder.rsplit('/', 1)[0]}/maven-metadata.xml"] = _metadata(here)
    for name, content in list(placed.items()):
        data = writing.read(content)
        # Old versions of Maven check md5 and sha1, Gradle the stronger ones.
        for kind in _CHECKSUMS:
            placed[f"{name}.{kind}"] = hashlib.new(kind, data, usedforsecurity=False).hexdigest().encode()
    return placed


def _pom(here: Coordinates, needs: Coordinates, license_: str) -> bytes:
    licenses = (
        f"""
  <licenses>
    <license>
      <name>{escape(license_)}</name>
    </license>
  </licenses>"""
        if license_
        else ""
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <!-- do_not_remove: published-with-gradle-metadata -->
  <modelVersion>4.0.0</modelVersion>
  <groupId>{here.group}</groupId>
  <artifactId>{here.artifact}</artifactId>
  <version>{here.version}</version>
  <packaging>aar</packaging>
  <name>{here.group}.{here.artifact}</name>{licenses}
  <dependencies>
    <dependency>
      <groupId>{needs.group}</groupId>
      <artifactId>{needs.artifact}</artifactId>
      <version>{needs.version}</version>
      <scope>runtime</scope>
    </dependency>
  </dependencies>
</project>
""".encode()


def _module(here: Coordinates, needs: Coordinates, placed: Mapping[str, Content]) -> bytes:
    """https://github.com/gradle/gradle/blob/master/platforms/documentation/docs/src/docs/design/gradle-module-metadata-latest-specification.md"""
    library = {
        "org.gradle.category": "library",
        "org.gradle.dependency.bundling": "external",
        "org.gradle.libraryelements": "aar",
    }
    aar = _file(placed, f"{here.folder}/{here.stem}.aar")
    sources = _file(placed, f"{here.folder}/{here.stem}-sources.jar")
    need = {
        "group": needs.group,
        "module": needs.artifact,
        "version": {"requires": needs.version},
    }
    documentation = {
        "org.gradle.category": "documentation",
        "org.gradle.dependency.bundling": "external",
        "org.gradle.docstype": "sources",
        "org.gradle.usage": "java-runtime",
    }
    document = {
        "formatVersion": "1.1",
        "component": {
            "group": here.group,
            "module": here.artifact,
            "version": here.version,
            "attributes": {"org.gradle.status": "release"},
        },
        "variants": [
            {
                "name": "releaseApiElements",
                "attributes": {**library, "org.gradle.usage": "java-api"},
                "files": [aar],
            },
            {
                "name": "releaseRuntimeElements",
                "attributes": {**library, "org.gradle.usage": "java-runtime"},
                "dependencies": [need],
                "files": [aar],
            },
            {"name": "releaseSourcesElements", "attributes": documentation, "files": [sources]},
        ],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _file(placed: Mapping[str, Content], path: str) -> dict[str, object]:
    data = writing.read(placed[path])
    name = path.rsplit("/", 1)[1]
    sums = {kind: hashlib.new(kind, data, usedforsecurity=False).hexdigest() for kind in _CHECKSUMS}
    return {"name": name, "url": name, "size": len(data), **sums}


def _metadata(here: Coordinates) -> bytes:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<metadata>
  <groupId>{here.group}</groupId>
  <artifactId>{here.artifact}</artifactId>
  <versioning>
    <latest>{here.version}</latest>
    <release>{here.version}</release>
    <versions>
      <version>{here.version}</version>
    </versions>
  </versioning>
</metadata>
""".encode()
