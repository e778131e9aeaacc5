"""A driver without a GPU behind ``libcuda.so.1``: memory of the host stands for memory of the device."""

import ctypes
import os

if os.environ.get("EDGEKIT_STANDIN"):
    _CDLL = ctypes.CDLL

    class CDLL(_CDLL):
        """Every library is what it is, but for this one."""

        def __new__(cls, name=None, *rest, **named):
            if name != "libcuda.so.1":
                return object.__new__(cls)
            import fake_cuda

            return fake_cuda.driver()

    ctypes.CDLL = CDLL
