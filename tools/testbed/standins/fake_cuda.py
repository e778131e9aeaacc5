"""The calls of the CUDA driver that the runner makes, on memory of the host. A stand-in, see README.md."""

import ctypes
import time

import generations

_NO_DEVICE = 100


class Driver:
    """What ``libcuda`` is asked for."""

    def __init__(self, device):
        self.device, self.blocks, self.marks = device, {}, {}

    def cuInit(self, flags):
        return _NO_DEVICE if self.device.get("no_gpu") else 0

    def cuDeviceGetCount(self, out):
        out._obj.value = 1
        return 0

    def cuDeviceGet(self, out, index):
        return 0 if index == 0 else 101

    def cuDeviceGetName(self, out, size, device):
        out.value = self.device["gpu"].encode()
        return 0

    def cuDevicePrimaryCtxRetain(self, out, device):
        return 0

    def cuCtxSetCurrent(self, context):
        return 0

    def cuDeviceGetAttribute(self, out, number, device):
        out._obj.value = self.device["cc"][number - 75]
        return 0

    def cuGetErrorString(self, status, out):
        out._obj.value = b"stand-in"
        return 0

    def cuMemGetInfo_v2(self, free, total):
        free._obj.value, total._obj.value = 4 << 30, 8 << 30
        return 0

    def cuStreamCreate(self, out, flags):
        out._obj.value = 7
        return 0

    def cuStreamSynchronize(self, stream):
        return 0

    def cuMemAlloc_v2(self, out, size):
        block = ctypes.create_string_buffer(size.value)
        out._obj.value = ctypes.addressof(block)
        self.blocks[out._obj.value] = block
        return 0

    def cuMemFree_v2(self, pointer):
        del self.blocks[pointer.value]
        return 0

    def cuMemcpyHtoD_v2(self, pointer, host, size):
        ctypes.memmove(pointer.value, host, size.value)
        return 0

    def cuMemcpyDtoH_v2(self, host, pointer, size):
        ctypes.memmove(host, pointer.value, size.value)
        return 0

    def cuEventCreate(self, out, flags):
        out._obj.value = len(self.marks) + 1
        self.marks[out._obj.value] = 0.0
        return 0

    def cuEventDestroy_v2(self, event):
        return 0

    def cuEventRecord(self, event, stream):
        self.marks[event.value] = time.perf_counter()
        return 0

    def cuEventElapsedTime(self, out, before, after):
        out._obj.value = 1e3 * (self.marks[after.value] - self.marks[before.value])
        return 0


def driver():
    """The one of this device."""
    return Driver(generations.here())
