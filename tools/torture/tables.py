"""docs/torture.json and the table of docs/torture.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs_tables import rendered

from torture.case import CASES
from torture.stages import DEFECT, REFUSED, RIGHT, TARGETS, UNCLEAR, WRONG

Results = Mapping[str, Mapping[str, Any]]
"""target → result, by module."""

_ALL = [t for group in TARGETS.values() for t in group]


def write(results: Results, out: Path) -> None:
    """Write both files; modules that were not run are left out and said."""
    there = {n: {t: _told(r) for t, r in targets.items()} for n, targets in results.items() if targets}
    lines = [f" {json.dumps(n)}: {json.dumps(r, sort_keys=True)}" for n, r in there.items()]
    (out / "torture.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    page = out / "torture.md"
    page.write_text(
        rendered(page.read_text(encoding="utf-8"), {"torture": lambda: table(there)}), encoding="utf-8"
    )
    print(f"wrote torture.json and torture.md; {len(results) - len(there)} modules were not run")


def _told(result: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: result[k] for k in ("status", "snr_db", "exit_code", "how") if k in result}
    if "message" in result:
        kept["message"] = _plain(result["message"])[:300]
    return kept


def _plain(message: str) -> str:
    """Without the paths of the machine."""
    words = message.split(" ")
    return " ".join(
        "…/" + w.rsplit("/", 1)[1] if w.strip("('\"").startswith("/") and "/" in w[1:] else w for w in words
    )


def table(results: Results) -> str:
    """Counts by target and by family, then every module that is not right everywhere in float32."""
    there = [t for t in _ALL if any(t in r for r in results.values())]
    lines = [
        f"{len(results)} modules.",
        "",
        "| target | modules | built whole | right | refused with the reason | anything else |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    lines += [_counts(t, [r[t] for r in results.values() if t in r]) for t in there]
    lines += ["", "| family | modules | " + " | ".join(there) + " |", "|---|---:|" + "---:|" * len(there)]
    families = dict.fromkeys(CASES[n].family for n in results)
    lines += [_family(f, results, there) for f in families]
    lines += [
        "",
        "| not right in fp32 | " + " | ".join(t.partition("-")[0] for t in TARGETS["fp32"]) + " | |",
    ]
    lines.append("|---|---|---|---|---|")
    for name, found in results.items():
        chosen = [found[t] for t in TARGETS["fp32"] if t in found]
        if any(r["status"] != RIGHT for r in chosen):
            said = dict.fromkeys(r.get("message", "") for r in chosen if r["status"] != RIGHT)
            cells = [name, *(r["status"] for r in chosen), "; ".join(said).replace("|", "/")[:260]]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counts(target: str, found: list[Mapping[str, Any]]) -> str:
    count = {s: sum(r["status"] == s for r in found) for s in (RIGHT, REFUSED, WRONG, DEFECT, UNCLEAR)}
    others = [f"{count[s]} {s}" for s in (WRONG, DEFECT, UNCLEAR) if count[s]]
    share = f"{count[RIGHT]} ({100 * count[RIGHT] / len(found):.1f} %)"
    whole = sum(r.get("how") != "direct" for r in found)
    cells = (target, len(found), whole, share, count[REFUSED], ", ".join(others) or 0)
    return "| " + " | ".join(map(str, cells)) + " |"


def _family(family: str, results: Results, targets: Sequence[str]) -> str:
    chosen = [r for n, r in results.items() if CASES[n].family == family]
    cells = []
    for target in targets:
        found = [r[target]["status"] for r in chosen if target in r]
        right = found.count(RIGHT)
        cells.append("" if not found else str(right) if right == len(found) else f"{right} of {len(found)}")
    return f"| {family} | {len(chosen)} | " + " | ".join(cells) + " |"
