"""Removes the private folder, if it is one of ours. Argument: path."""

import os
import shutil
import sys

path = sys.argv[1]
if os.path.basename(path).startswith("edgekit-") and os.path.isfile(os.path.join(path, ".edgekit")):
    shutil.rmtree(path, ignore_errors=True)
