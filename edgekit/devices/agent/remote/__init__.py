"""Scripts for ``python3 -c`` on a device that has nothing of ours yet. Each is one file without imports of ours.

They run before the interpreter's version is known: the first must be readable by any Python 3.
"""
