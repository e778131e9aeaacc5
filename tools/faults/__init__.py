"""Small trained networks, and what can go wrong with their artifacts (see ``tools/fault_catalogue.py``)."""
