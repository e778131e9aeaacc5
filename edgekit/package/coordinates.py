"""What a package may be called: one id and one version that are valid on every platform at once.

``com.example.hand_digits`` 1.0.0 is the Java package ``com.example.hand_digits``, the Maven coordinates
``com.example:hand_digits:1.0.0``, the npm package of that name, the Swift module ``HandDigits`` and the prefix
``com_example_hand_digits_`` of C symbols.
"""

from __future__ import annotations

import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from edgekit.errors import UsageError

_ID = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_LONGEST = 200
# https://semver.org, without build metadata: Maven, npm and SwiftPM disagree about what it means.
_PART = r"(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-{_PART}(\.{_PART})*)?")
_LARGEST = 2**31 - 1
"""Of the numbers of a version: npm compares them as whole numbers of 53 bits, Android's tools as those of 31."""

_JAVA = re.compile(
    "abstract|assert|boolean|break|byte|case|catch|char|class|const|continue|default|do|double|else|enum|"
    "extends|false|final|finally|float|for|goto|if|implements|import|instanceof|int|interface|long|native|"
    "new|null|package|private|protected|public|return|short|static|strictfp|super|switch|synchronized|this|"
    "throw|throws|transient|true|try|void|volatile|while"
)
_WINDOWS = re.compile("con|prn|aux|nul|com[1-9]|lpt[1-9]")
# Class loaders refuse to take the first two from an app, and give an app the platform's classes for the others.
_PLATFORM = frozenset(["java", "javax", "android", "androidx", "dalvik", "kotlin"])
_NPM = frozenset(["favicon.ico"])
_SWIFT = re.compile(
    "Any|Combine|CoreGraphics|CoreImage|CoreML|CoreVideo|Darwin|Foundation|Package|Protocol|Self|Swift|"
    "SwiftUI|Testing|Type|UIKit|XCTest"
)


def check_name(name: str) -> None:
    """Raise :class:`UsageError` unless ``name`` is a package id on every platform."""
    why, hint = _wrong(name)
    if why:
        raise UsageError(f"{name!r} is no valid package id: {why}", hint=hint)


def check_version(version: str) -> None:
    """Raise :class:`UsageError` unless ``version`` is a semantic version."""
    found = _VERSION.fullmatch(version)
    if found is None or len(version) > _LONGEST or any(int(found[n]) > _LARGEST for n in (1, 2, 3)):
        raise UsageError(
            f"{version[:_LONGEST]!r} is no version",
            hint="three numbers below 2,147,483,648 as in 1.0.0, with a suffix at most: 1.0.0-beta.1",
        )


def check_license(expression: str) -> None:
    """Raise :class:`UsageError` unless ``expression`` is an SPDX expression of licences that SPDX lists."""
    if not expression:
        return
    try:
        if canonicalize_license_expression(expression) == expression:
            return
        why = f"SPDX writes it {canonicalize_license_expression(expression)}"
    except InvalidLicenseExpression as error:
        why = str(error)
    raise UsageError(
        f"{expression[:_LONGEST]!r} is no SPDX license expression: {why[:_LONGEST]}",
        hint="such as MIT or Apache-2.0 WITH LLVM-exception; a text of its own goes into --license-file",
    )


def camel_case(short_name: str) -> str:
    """``hand_digits`` gives ``HandDigits``."""
    return "".join(w[:1].upper() + w[1:] for w in short_name.split("_"))


def _wrong(name: str) -> tuple[str, str]:
    """What is wrong with an id and what to do, or two empty texts."""
    other = "take another word"
    if not _ID.fullmatch(name):
        parts = "two or more parts of lower-case letters, digits and _, such as com.example.digits"
        tidy = re.sub(r"[^a-z0-9_.]", "_", name.lower())
        return "its form is not that of one", parts + (f"; {tidy}?" if _ID.fullmatch(tidy) else "")
    # File names of 255 bytes, of which Maven adds version and ending.
    if len(name) > _LONGEST:
        return f"it has {len(name)} letters", f"at most {_LONGEST}"
    words = name.split(".")
    for table, what in ((_JAVA, "a reserved word of Java"), (_WINDOWS, "a name that Windows reserves")):
        if bad := [w for w in words if table.fullmatch(w)]:
            return f"{bad[0]} is {what}", other
    if words[0] in _PLATFORM:
        return f"{words[0]} belongs to the platform", "begin with a domain of yours, such as com.example"
    if name in _NPM:
        return "npm refuses it", other
    module = camel_case(words[-1])
    if not module[:1].isalpha():
        return f"its last part gives the Swift module {module!r}", other
    if _SWIFT.fullmatch(module):
        return f"its last part gives the Swift module {module}, which is taken", other
    return "", ""
