"""The code that runs on the device: Python 3.8 or newer, standard library, numpy and the runtime.

The host never imports it as a library: :mod:`edgekit.devices.pack` zips it, with one backend's
``runner.py`` and its name (``backend.NAME``), into an executable archive. Inside the archive the package is called
``edgekit_agent``.
"""
