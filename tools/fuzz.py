"""Feed hostile inputs to everything that edgekit reads of others; ``make fuzz``.

    python tools/fuzz.py [SURFACE…] [--inputs 10000] [--jobs 2] [--seconds 600] [--seed 0] [--every 100] [--keep DIR]

Each input is a small valid file that was changed by its structure, or one that was found before (tests/fuzz/corpus).
It is read in every way in which edgekit reads such a file; one of ``--every`` goes through the command line as well.
What is wrong: an exception that is none of edgekit's own, an exit code that says "unexpected", a crash, an input that
takes more than a minute or 2 GiB, a write outside the folder that was given, code of the input that was executed.

Prints a table, and where the inputs of its findings are. Exit code 1 where there is any.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzzing.campaign import Campaign, table
from fuzzing.surfaces import NAMES


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "surfaces", nargs="*", metavar="SURFACE", help=f"of {', '.join(NAMES)} (default: all)"
    )
    parser.add_argument("--inputs", type=int, default=10_000, help="over all surfaces")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=600.0, help="to stop after")
    parser.add_argument("--seed", default="0")
    parser.add_argument(
        "--every", type=int, default=100, help="inputs to one call of the command line; 0: none"
    )
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where inputs of findings go")
    asked = parser.parse_args()
    names = asked.surfaces or list(NAMES)
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such surface: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    campaign = Campaign(
        surfaces=names,
        inputs=math.ceil(asked.inputs / len(names)),
        jobs=asked.jobs,
        seed=asked.seed,
        deadline=time.monotonic() + asked.seconds,
        every=asked.every,
        keep=asked.keep.resolve(),
    )
    results = campaign.run()
    print(table(results))
    for found in results:
        for (verdict, where), path in found.wrong.items():
            print(f"{found.name}: {verdict}: {where}\n    {path}")
    return int(any(found.wrong for found in results))


if __name__ == "__main__":
    sys.exit(main())
