"""Compile the kernels to a GPU's machine code without a GPU: NVIDIA's compiler as a library, `pip install nvidia-cuda-nvrtc`.

    python -m nprcnn.kernels.cuda.nvrtc                 every kernel: registers, shared memory, spills, by architecture
    python -m nprcnn.kernels.cuda.nvrtc sm_90 conv2d    one architecture, the files whose names begin so
"""

import ctypes
import re
import site
import sys
from pathlib import Path
from typing import NamedTuple

from . import launch

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")     # T4, A100, RTX 30, RTX 40, H100, B200, RTX 50

FIRST = {"conv2d_v5_tensor_cores": "sm_80"}      # what a file needs, where that is not the first architecture: TF32


class NoNvrtc(RuntimeError):
    """NVRTC is not installed."""


class Usage(NamedTuple):
    """What a compiled kernel needs: registers a thread, bytes of static shared memory a block, bytes spilled to memory."""

    registers: int
    shared: int
    spills: int


def load():
    """The library, from NVIDIA's wheels or the system.

    Raises
    ------
    NoNvrtc
    """
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    names = [str(path) for folder in folders for pattern in ("nvidia/cu*/lib/libnvrtc.so.*", "nvidia/cuda_nvrtc/lib/libnvrtc.so.*")
             for path in sorted(Path(folder).glob(pattern))]
    for name in [*names, "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise NoNvrtc("NVRTC is not installed: pip install nvidia-cuda-nvrtc")


def compile_file(library, file, architecture, real="float32"):
    """Compile FILE.cu.

    Parameters
    ----------
    library : from `load`
    file : str, without its ending
    architecture : str, such as "sm_90"
    real : "float32" or "float64"

    Returns
    -------
    usage : {kernel's name: Usage}
    ptx : str, the code one step before the machine's
    """
    options = [f"--gpu-architecture={architecture}", "--ptxas-options=-v", *launch.options(file, real)]
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), launch.source(file).encode(), file.encode(), 0, None, None))
    try:
        result = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*[o.encode() for o in options]))
        log = _text(library, "nvrtcGetProgramLog", program)
        if result:
            raise RuntimeError(f"NVRTC does not accept {file}.cu for {architecture}:\n{log}")
        return usage_of(log), _text(library, "nvrtcGetPTX", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def usage_of(log):
    """What the assembler says (--ptxas-options=-v) -> {kernel's name: Usage}."""
    found = {}
    for part in re.split(r"Compiling entry function '", log)[1:]:
        name = part.split("'")[0]
        registers = re.search(r"Used (\d+) registers", part)
        shared, spills = re.search(r"(\d+) bytes smem", part), re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        found[name] = Usage(int(registers[1]), int(shared[1]) if shared else 0, int(spills[1]) + int(spills[2]) if spills else 0)
    return found


def files():
    """The names of all .cu files, without their endings."""
    return sorted(path.stem for path in launch.FOLDER.glob("*.cu"))


def architectures(file):
    """Those of ARCHITECTURES that a file can be compiled for."""
    return ARCHITECTURES[ARCHITECTURES.index(FIRST.get(file, ARCHITECTURES[0])):]


def _text(library, function, program):
    size = ctypes.c_size_t()
    _check(library, getattr(library, function + "Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, function)(program, buffer))
    return buffer.value.decode()


def _check(library, result):
    if result:
        raise RuntimeError(library.nvrtcGetErrorString(result).decode())


def main(arguments):
    wanted = [a for a in arguments if a.startswith("sm_")] or ARCHITECTURES
    beginnings = tuple(a for a in arguments if not a.startswith("sm_")) or ("",)
    library = load()
    print(f"{'file':28} {'kernel':26} {'':6} registers, bytes of shared memory, bytes spilled")
    for file in files():
        for architecture in wanted if file.startswith(beginnings) else ():
            if architecture in ARCHITECTURES and architecture not in architectures(file):
                print(f"{file:28} {'':26} {architecture:6} needs {FIRST[file]}")
                continue
            for name, usage in compile_file(library, file, architecture)[0].items():
                print(f"{file:28} {name:26} {architecture:6} {usage.registers:4} {usage.shared:6} {usage.spills:4}")


if __name__ == "__main__":
    main(sys.argv[1:])
