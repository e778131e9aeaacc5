"""Fuzzing: hostile inputs for everything that edgekit reads of others, by the structure of each format.

``surfaces`` are what edgekit reads, ``mutators`` change a small seed of each, ``sandbox`` sees what a process does
besides, ``worker`` feeds one surface, ``campaign`` runs the workers and counts. ``make fuzz`` calls ``tools/fuzz.py``.
"""
