"""A double of CuPy on NumPy's memory: what a test puts in the place of the module cupy where there is no GPU.

It is as strict as CuPy 14 (cupy/_core/core.pyx, _routines_indexing.pyx): an array is no numpy.ndarray; NumPy gets at its numbers only by `get`,
for `__array__` raises; NumPy's functions reach it by dispatch, by name, and those that CuPy does not have do not; NumPy's arrays are
refused beside it, but as an index, and where something is put on the device. The kernels are the .cu files, compiled for the CPU.

It counts: `syncs` has every moment at which CuPy would wait for the GPU, with the bytes that come back; `uploads` the bytes of each array
that goes up. `memory_limit` bounds what may be allocated. Events tell the CPU's time, and the device calls itself "a double".
"""

import time
import weakref
from types import SimpleNamespace

import numpy as np

__version__ = "0"
syncs, uploads = [], []
memory_limit = None
_used = 0


def reset():
    """Forget the counts and the limit."""
    global memory_limit
    memory_limit = None
    syncs.clear()
    uploads.clear()


def _sync(why, nbytes=8):
    syncs.append((why, nbytes))
    _core.syncdetect._declare_synchronize()     # as CuPy does, by name, so that who counts may put a function of his own there


# ---- the errors

class CUDARuntimeError(RuntimeError):
    """cupy_backends.cuda.api.runtime.CUDARuntimeError"""


class OutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError"""


def _allocate(values):
    """Take over a NumPy array as memory of the device."""
    global _used
    if memory_limit is not None and _used + values.nbytes > memory_limit:
        raise OutOfMemoryError(f"Out of memory allocating {values.nbytes:,} bytes (allocated so far: {_used:,} bytes).")
    _used += values.nbytes
    array = ndarray.__new__(ndarray)
    array._values, array._owner = values, array
    weakref.finalize(array, _free, values.nbytes)
    return array


def _free(nbytes):
    global _used
    _used -= nbytes


# ---- the array

class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """Plays cupy.ndarray."""

    __array_priority__ = 100

    def __init__(self, *args, **kwargs):
        raise TypeError("made by the functions of the module")

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly.")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            return NotImplemented
        out = kwargs.pop("out", (None,))[0]
        assert set(kwargs) <= {"dtype", "casting"}, kwargs
        result = ufunc(*map(_operand, inputs), **kwargs, **({} if out is None else {"out": _operand(out)}))
        return _result(result) if out is None else out

    def __array_function__(self, func, types, args, kwargs):
        if func.__module__ != "numpy" or func.__name__ not in globals() or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return globals()[func.__name__](*args, **kwargs)

    def __getitem__(self, index):
        index, advanced = _index(index)
        if advanced:
            return _result(self._values[index])
        return self._view(self._values[index if any(part is ... for part in index) else (*index, ...)])

    def __setitem__(self, index, value):
        index, _ = _index(index)
        self._values[index] = _operand(value)

    def _view(self, values):
        view = ndarray.__new__(ndarray)
        view._values, view._owner = values, self._owner
        return view

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __bool__(self):
        _sync("bool", self.nbytes)
        return bool(self._values)

    def __int__(self):
        _sync("int", self.nbytes)
        return int(self._values)

    def __float__(self):
        _sync("float", self.nbytes)
        return float(self._values)

    def item(self):
        _sync("item", self.nbytes)
        return self._values.item()

    def get(self):
        if self.size:
            _sync("get", self.nbytes)
        return self._values.copy()

    def tolist(self):
        return self.get().tolist()

    shape, dtype, ndim, size, nbytes, itemsize, flags, strides = (
        property(lambda self, name=name: getattr(self._values, name))
        for name in ("shape", "dtype", "ndim", "size", "nbytes", "itemsize", "flags", "strides"))

    @property
    def T(self):
        return self._view(self._values.T)

    def transpose(self, *axes):
        return self._view(self._values.transpose(*axes))

    def swapaxes(self, a, b):
        return self._view(self._values.swapaxes(a, b))

    def reshape(self, *shape):
        values = self._values.reshape(*shape)
        return self._view(values) if np.shares_memory(values, self._values) or not values.size else _result(values)

    def astype(self, dtype, order="K", copy=True):
        if not copy and self.dtype == dtype:
            return self
        return _result(self._values.astype(dtype, order=order))

    def copy(self):
        return _result(self._values.copy())

    def take(self, indices, axis=None):
        return take(self, indices, axis)


def _method(name):
    def method(self, axis=None, keepdims=False):
        return _result(getattr(self._values, name)(axis=axis, keepdims=keepdims))
    return method


for _name in ("sum", "mean", "max", "min", "all", "any", "argmax", "argmin"):
    setattr(ndarray, _name, _method(_name))


def _operand(value):
    """The numbers of an argument; NumPy's arrays are refused, as CuPy refuses them."""
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if not isinstance(value, (bool, int, float, np.generic)):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _operands(value):
    """The same through lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_operands, value))
    return value if value is None or isinstance(value, (str, type, np.dtype)) else _operand(value)


def _result(values):
    return _allocate(np.array(values, order="K" if np.ndim(values) else "C"))


def _index(index):
    """The parts of an index as NumPy takes them, and whether arrays are among them: CuPy copies NumPy's to the device."""
    parts, advanced = [], False
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, (list, np.ndarray)):
            part = asarray(part)
        if isinstance(part, ndarray):
            advanced = True
            if part.dtype == bool:
                _sync("index of booleans")
            part = part._values
        parts.append(part)
    return tuple(parts), advanced


# ---- the functions

UFUNCS = {"absolute", "add", "ceil", "divide", "equal", "exp", "floor", "greater", "greater_equal", "isfinite", "isnan", "less", "less_equal",
          "log", "log1p", "logical_and", "bitwise_and", "matmul", "maximum", "minimum", "multiply", "negative", "not_equal", "sign", "sqrt",
          "subtract", "true_divide", "invert", "bitwise_or"}
FUNCTIONS = ("concatenate", "stack", "where", "clip", "zeros_like", "empty_like", "einsum", "vdot", "sort", "searchsorted", "cumsum")


def _function(name):
    def function(*args, **kwargs):
        return _result(getattr(np, name)(*map(_operands, args), **kwargs))
    return function


for _name in FUNCTIONS:
    globals()[_name] = _function(_name)


def asarray(a, dtype=None):
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    values = np.array(a, dtype, order="C")
    uploads.append(values.nbytes)
    return _allocate(values)


def array(obj, dtype=None):
    return asarray(obj, dtype).copy() if isinstance(obj, ndarray) else asarray(obj, dtype)


def ascontiguousarray(a, dtype=None):
    a = asarray(a, dtype)
    return a if a.flags.c_contiguous else _allocate(np.ascontiguousarray(a._values))


def empty(shape, dtype=float):
    values = np.empty(shape, dtype)
    values.view(np.uint8)[...] = 0xA5 if values.size else 0     # what was there before: whoever reads it finds nonsense
    return _allocate(values)


def zeros(shape, dtype=float):
    return _allocate(np.zeros(shape, dtype))


def ones(shape, dtype=float):
    return _allocate(np.ones(shape, dtype))


def full(shape, fill_value, dtype=None, order="C"):
    return _allocate(np.full(shape, _operand(fill_value), dtype))


def arange(start, stop=None, step=1, dtype=None):
    return _allocate(np.arange(start, stop, step, dtype) if stop is not None else np.arange(0, start, step, dtype))


def result_type(*arrays):
    return np.result_type(*(a._values if isinstance(a, ndarray) else a for a in arrays))


def argsort(a, axis=-1, kind=None):
    assert kind in (None, "stable"), kind
    return _result(np.argsort(a._values, axis, kind="stable"))


def take(a, indices, axis=None):
    return _result(np.take(a._values, asarray(indices)._values, axis))


def split(ary, indices_or_sections, axis=0):
    return [ary._view(part) for part in np.split(ary._values, indices_or_sections, axis)]


def flatnonzero(a):
    _sync("flatnonzero")
    return _result(np.flatnonzero(a._values))


def nonzero(a):
    _sync("nonzero")
    return tuple(map(_result, np.nonzero(a._values)))


def isfinite(a):
    return np.isfinite(a)


def get_array_module(*args):
    return cupy_double if any(isinstance(a, ndarray) for a in args) else np


def matmul(x1, x2, out=None):
    return np.matmul(x1, x2) if out is None else np.matmul(x1, x2, out=out)


class MemoryPool:
    """Plays the default memory pool: what is free is given back at once."""

    def free_all_blocks(self, stream=None):
        pass

    def used_bytes(self):
        return _used

    def total_bytes(self):
        return _used

    def get_limit(self):
        return memory_limit or 0

    def set_limit(self, size=None, fraction=None):
        global memory_limit
        memory_limit = size or None


_pool = MemoryPool()


def get_default_memory_pool():
    return _pool


def as_strided(x, shape=None, strides=None):
    return x._view(np.lib.stride_tricks.as_strided(x._values, shape, strides))


lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=as_strided))


# ---- the kernels and the driver

# By value a kernel takes these; Python's own numbers are made 8 bytes first, whatever the kernel takes (cupy/cuda/function.pyx)
SCALARS = {np.dtype(code).type for code in "?bhilqBHILQefdFD"}


def _argument(value):
    """What RawKernel makes of an argument. One element of NumPy's memory would go by value without a word; that is refused here."""
    if isinstance(value, ndarray):
        return value._values
    if isinstance(value, np.ndarray):
        raise TypeError(f"You are trying to pass a numpy.ndarray of shape {value.shape} as a kernel parameter")
    if type(value) in SCALARS:
        return value
    for kind, wide in ((bool, np.bool_), (int, np.int64), (float, np.float64), (complex, np.complex128)):
        if isinstance(value, kind):
            return wide(value)
    raise TypeError(f"Unsupported type {type(value)}")


class RawModule:
    """The .cu file on the CPU, and as strict about types as RawModule and RawKernel are: a tuple of options, tuples of sizes, and a number of
    the size that the kernel takes (a GPU would read what lies beside it)."""

    def __init__(self, *, code=None, options=()):
        if not isinstance(code, str) or not isinstance(options, tuple):
            raise TypeError(f"code must be a str and options a tuple, not {type(code)} and {type(options)}")
        from nprcnn.kernels.cuda_on_cpu.loader import Module
        self.module = Module(code, options, name="double")

    def get_function(self, name):
        function = self.module.get_function(name)

        def kernel(grid, block, args, *, shared_mem=0):
            if not isinstance(grid, tuple) or not isinstance(block, tuple):
                raise TypeError("Argument 'grid' or 'block' has incorrect type (expected tuple)")
            function(grid, block, tuple(map(_argument, args)), int(shared_mem))
        return kernel


class Event:
    """Plays cupy.cuda.Event: the moment when the work before it is done, which here is at once."""

    def __init__(self, block=False, disable_timing=False, interprocess=False):
        self.timed, self.moment = not disable_timing, None

    def record(self, stream=None):
        self.moment = time.perf_counter()

    def synchronize(self):
        _sync("event")


def get_elapsed_time(start_event, end_event):
    """Milliseconds."""
    if None in (start_event.moment, end_event.moment) or not (start_event.timed and end_event.timed):
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: invalid resource handle")
    return 1e3 * (end_event.moment - start_event.moment)


class Device:
    """Plays cupy.cuda.Device."""

    compute_capability = "90"

    def __init__(self, device=None):
        self.id = int(device or 0)

    def synchronize(self):
        runtime.deviceSynchronize()


ATTRIBUTES = {"ClockRate": 1_000_000, "MemoryClockRate": 1_000_000, "GlobalMemoryBusWidth": 64, "MultiProcessorCount": 2}
_names = list(ATTRIBUTES)
runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: 1, getDevice=lambda: 0, driverGetVersion=lambda: 12080,
    runtimeGetVersion=lambda: 12080, deviceSynchronize=lambda: None,
    getDeviceProperties=lambda device: {"name": b"a double", "major": 9, "minor": 0, "multiProcessorCount": 2, "totalGlobalMem": 2**34},
    deviceGetAttribute=lambda attribute, device: ATTRIBUTES[_names[attribute]],
    **{f"cudaDevAttr{name}": number for number, name in enumerate(_names)})
cuda = SimpleNamespace(runtime=runtime, nvrtc=SimpleNamespace(getVersion=lambda: (12, 8)), Event=Event, get_elapsed_time=get_elapsed_time,
                       Device=Device, memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError))

_compute_type = [1]
_core = SimpleNamespace(
    syncdetect=SimpleNamespace(_declare_synchronize=lambda: None),
    _routines_linalg=SimpleNamespace(COMPUTE_TYPE_DEFAULT=1, COMPUTE_TYPE_TF32=7, get_compute_type=lambda dtype: _compute_type[0],
                                     set_compute_type=lambda dtype, kind: _compute_type.__setitem__(0, kind)))

import device_double as cupy_double  # noqa: E402  (itself, for get_array_module)
