"""NVIDIA's driver through ctypes: loading PTX, encoding tensor maps and launching, in the context that PyTorch made current."""

import ctypes

# Numbers of cuda.h.
JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 5, 6
MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
FUNC_SHARED_SIZE_BYTES, FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES = 1, 8
TENSOR_MAP_DATA_TYPES = {1: 0, 2: 1, 4: 2, 8: 4}  # by bytes of an element: unsigned integers
TENSOR_MAP_L2_PROMOTION_256B = 3

LOG_BYTES = 8192


class DriverError(RuntimeError):
    """A function of the driver failed, and with it mostly the context."""


class Driver:
    """The driver, with a device's primary context current on this thread."""

    def __init__(self, ordinal=0):
        try:
            self.lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DriverError(f"there is no NVIDIA driver here: {error}") from error
        self._call("cuInit", ctypes.c_uint(0))
        self.ordinal = ordinal

    def _call(self, name, *arguments):
        code = getattr(self.lib, name)(*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self.lib.cuGetErrorName(code, ctypes.byref(text))
            raise DriverError(f"{name}: {(text.value or b'?').decode()} ({code})")

    def load(self, ptx):
        """The module of a PTX text."""
        log = ctypes.create_string_buffer(LOG_BYTES)
        keys = (ctypes.c_int * 2)(JIT_ERROR_LOG_BUFFER, JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        module = ctypes.c_void_p()
        try:
            text = ctypes.c_char_p(ptx.encode())
            self._call("cuModuleLoadDataEx", ctypes.byref(module), text, ctypes.c_uint(2), keys, values)
        except DriverError as error:
            raise DriverError(f"{error}; {log.value.decode(errors='replace').strip()}") from error
        return Module(self, module)

    def encode(self, layout):
        """The 16 words of a tensor map."""
        rank = len(layout["dims"])
        # The driver wants the map at a multiple of 64 bytes.
        memory = ctypes.create_string_buffer(128 + 64)
        address = -(-ctypes.addressof(memory) // 64) * 64
        self._call(
            "cuTensorMapEncodeTiled",
            ctypes.c_void_p(address),
            ctypes.c_int(TENSOR_MAP_DATA_TYPES[layout["element_bytes"]]),
            ctypes.c_uint32(rank),
            ctypes.c_void_p(layout["address"]),
            (ctypes.c_uint64 * rank)(*layout["dims"]),
            (ctypes.c_uint64 * (rank - 1))(*layout["strides_bytes"]),
            (ctypes.c_uint32 * rank)(*layout["box_dims"]),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            ctypes.c_int(0),  # not interleaved
            ctypes.c_int(layout["swizzle"]),
            ctypes.c_int(TENSOR_MAP_L2_PROMOTION_256B),
            ctypes.c_int(0),  # zeros out of bounds
        )
        return list((ctypes.c_uint64 * 16).from_address(address))


class Module:
    """Loaded kernels."""

    def __init__(self, driver, module):
        self.driver, self.module, self.functions = driver, module, {}

    def function(self, name):
        if name not in self.functions:
            call = self.driver._call
            function = ctypes.c_void_p()
            call("cuModuleGetFunction", ctypes.byref(function), self.module, ctypes.c_char_p(name.encode()))
            limit, fixed = ctypes.c_int(), ctypes.c_int()
            call("cuDeviceGetAttribute", ctypes.byref(limit), MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, self.driver.ordinal)
            call("cuFuncGetAttribute", ctypes.byref(fixed), FUNC_SHARED_SIZE_BYTES, function)
            dynamic = ctypes.c_int(limit.value - fixed.value)
            call("cuFuncSetAttribute", function, FUNC_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic)
            self.functions[name] = function
        return self.functions[name]

    def prepare(self, launch):
        """A function of a stream's pointer that makes the launch."""
        function = self.function(launch["kernel"])
        params = ctypes.create_string_buffer(bytes.fromhex(launch["params"]))
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(params))
        sizes = [ctypes.c_uint(size) for size in (*launch["grid"], *launch["block"], launch["shared_bytes"])]
        call, name = self.driver._call, launch["kernel"]

        def run(stream, _keep=params):
            try:
                call("cuLaunchKernel", function, *sizes, ctypes.c_void_p(stream), pointers, None)
            except DriverError as error:
                raise DriverError(f"{name}: {error}") from error

        return run
