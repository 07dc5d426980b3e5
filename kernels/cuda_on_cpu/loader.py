"""Module: compile a .cu text with the host's C++ compiler, and call its kernels on NumPy arrays, as with cupy.RawModule.

    module = Module(code=text, options=("-Dreal=double",))
    kernel = module.get_function("roi_align_forward")
    kernel(grid, block, (x, y, np.int32(7), np.float32(.5)), shared_mem=0)

Unlike a GPU it checks each call: the number and types of the arguments, contiguity, alignment, the limits of the grid.
"""

import ctypes
import re
from pathlib import Path

import numpy as np

from . import compiler

HERE = Path(__file__).resolve().parent

# mode: (flags for the kernel, flags for the engine)
MODES = {
    "run": (["-O2"], ["-O2"]),
    "debug": (["-O0", "-g3"], ["-O1", "-g"]),
    # -fsanitize=thread puts a call in front of every access; inspect.cpp receives it. What would give one line of the kernel
    # two copies in the machine code is switched off: the lanes of a warp are matched by the instruction they are at. (addr2line of binutils
    # 2.40 takes one file for another in DWARF 5.)
    "inspect": (["-O1", "-gdwarf-4", "-fsanitize=thread", "-fno-thread-jumps", "-DCUDA_ON_CPU_INSPECT"], ["-O2", "-DINSPECT"]),
    "asan": (["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
             ["-O2", "-DWITH_ASAN"]),
    "tsan": (["-O1", "-g", "-fsanitize=thread"], ["-O2", "-DWITH_TSAN"]),
    # Counts how often each line ran, for gcov; without optimisation, so that each line has instructions of its own
    "coverage": (["-O0", "-g", "--coverage", "-fprofile-update=atomic"], ["-O2"]),
}
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
MAX_THREADS, MAX_GRID, MAX_SHARED = 1024, (2**31 - 1, 65535, 65535), 48 * 1024


class LaunchError(RuntimeError):
    """A kernel was called with what a GPU would not take, or went wrong while it ran."""


def _read(*names):
    return [(HERE / name).read_text() for name in names]


def _engine(mode):
    """The path of the engine's library for a mode."""
    names = ["engine.cpp"] + (["inspect.cpp"] if mode == "inspect" else [])
    # one text: the second file goes into the same library
    text = "\n".join(f'#line 1 "{name}"\n{part}' for name, part in zip(names, _read(*names)))
    return compiler.build(f"engine-{mode}", text, [*MODES[mode][1], f"-I{HERE}"], depends=_read("inspect.h"))


class Module:
    """A compiled .cu text.

    Parameters
    ----------
    code : str
        CUDA C++ without #include.
    options : sequence of str
        Those that begin with -D are used; what else is for NVRTC is ignored.
    mode : str
        "run"; "debug", for gdb; "inspect", which counts and checks every access (see inspection.py); "asan" and "tsan", for processes
        that were started with that sanitizer, and "coverage", for gcov (see README.md).
    name : str
        Begins the name of the library, for those who look into the cache folder.

    Raises
    ------
    compiler.NoCompiler, compiler.CompileError
    """

    def __init__(self, code, options=(), mode="run", name="kernel"):
        self.mode, self.code = mode, code
        self.names = KERNEL.findall(code)
        text = DYNAMIC_SHARED.sub(r"CUDA_ON_CPU_DYNAMIC_SHARED(\1, \2);", code)
        text = '#include "cuda_on_cpu.h"\n' + text + "\n" + "".join(f"CUDA_ON_CPU_EXPORT({name})\n" for name in self.names)
        engine = _engine(mode)
        macros = [option for option in options if option.startswith("-D")]
        self.path = compiler.build(name, text, [*MODES[mode][0], *macros, f"-I{HERE}"], depends=_read("cuda_on_cpu.h"), link=[engine])
        self.library = ctypes.CDLL(str(self.path))
        self.engine = ctypes.CDLL(str(engine))

    def get_function(self, name):
        """The kernel of this name, to be called as kernel(grid, block, args, shared_mem=0)."""
        if name not in self.names:
            raise LaunchError(f"there is no kernel {name!r} here, only: {', '.join(self.names)}")
        return Kernel(self, name)


class Kernel:
    """One kernel of a Module."""

    def __init__(self, module, name):
        self.module, self.name = module, name
        describe = getattr(module.library, f"signature_{name}")
        describe.restype = ctypes.c_char_p
        self.parameters = describe().decode().rstrip(",").split(",")
        self._launch = getattr(module.library, f"launch_{name}")
        self._launch.restype = ctypes.c_char_p
        self._launch.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]

    def __call__(self, grid, block, args, shared_mem=0):
        """Run all threads of the grid. Returns when they have ended.

        Raises
        ------
        TypeError : arguments that the kernel does not take
        LaunchError : a grid that a GPU does not take, or an error while the kernel ran
        """
        grid, block = self._check_grid(grid, block, shared_mem)
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, got {len(args)}")
        values = [self._argument(i, value, wanted) for i, (value, wanted) in enumerate(zip(args, self.parameters))]
        pointers = (ctypes.c_void_p * len(args))(*[ctypes.addressof(value) for value in values])
        error = self._launch(ctypes.byref(grid), ctypes.byref(block), shared_mem, ctypes.byref(pointers))
        if error:
            raise LaunchError(f"{self.name}: {error.decode()}")

    def _check_grid(self, grid, block, shared_mem):
        grid, block = (tuple(int(n) for n in size) + (1,) * (3 - len(size)) for size in (grid, block))
        if min(grid) < 1 or any(n > limit for n, limit in zip(grid, MAX_GRID)):
            raise LaunchError(f"{self.name}: a grid of {grid} blocks; each side must be at least 1 and at most {MAX_GRID}")
        if min(block) < 1 or block[0] * block[1] * block[2] > MAX_THREADS or block[2] > 64:
            raise LaunchError(f"{self.name}: a block of {block} threads; at most {MAX_THREADS} in all and 64 in z")
        if shared_mem > MAX_SHARED:
            raise LaunchError(f"{self.name}: {shared_mem} bytes of dynamic shared memory, more than {MAX_SHARED}")
        return (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block)

    def _argument(self, i, value, wanted):
        """The C value of one argument, checked against the kernel's parameter ("i4", or "*f4:16" for a pointer)."""
        where = f"{self.name}, argument {i}"
        if wanted[0] not in "*+":
            # A bare Python number would reach a GPU as 8 bytes, so the exact NumPy scalar is asked for
            if not isinstance(value, np.generic) or value.dtype.str[1:] != wanted:
                kind = getattr(value, "dtype", type(value).__name__)
                raise TypeError(f"{where}: the kernel wants {np.dtype(wanted)}, got {kind}")
            return (ctypes.c_char * value.itemsize).from_buffer_copy(value.tobytes())
        dtype, alignment = wanted[1:].split(":")
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{where}: the kernel wants an array, got {type(value).__name__}")
        if value.dtype != np.dtype(dtype):
            raise TypeError(f"{where}: the kernel wants {np.dtype(dtype)}, the array is {value.dtype}")
        if not value.flags.c_contiguous:
            raise TypeError(f"{where}: the array must be contiguous")
        if wanted[0] == "*" and not value.flags.writeable:
            raise TypeError(f"{where}: the kernel writes into this array, which is read-only")
        if value.ctypes.data % int(alignment):
            raise TypeError(f"{where}: the array must begin at a multiple of {alignment} bytes")
        return ctypes.c_void_p(value.ctypes.data)
