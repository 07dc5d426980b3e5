"""Finds the host's C++ compiler, compiles a text once, and keeps the result in the user's cache folder."""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path


class NoCompiler(RuntimeError):
    """There is no C++ compiler on this machine; the message says what to install."""


class CompileError(RuntimeError):
    """The compiler refused a kernel; the message is the compiler's."""


@functools.cache
def find():
    """The compiler's path and its version line: $CXX, else the first of g++, clang++ and c++ that is there.

    Raises
    ------
    NoCompiler
    """
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        path = shutil.which(name)
        if path:
            version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            return path, version.split("\n")[0]
    raise NoCompiler(
        "running CUDA kernels on the CPU needs a C++ compiler, and none was found (looked for $CXX, g++, clang++, c++). Install one:\n"
        "    Debian, Ubuntu:  sudo apt install g++\n"
        "    Fedora:          sudo dnf install gcc-c++\n"
        "    macOS:           xcode-select --install\n"
        "or choose other kernels, such as nprcnn.use(\"numpy\").")


@functools.cache
def cache_folder():
    """Where compiled kernels are kept: $XDG_CACHE_HOME or ~/.cache, then nprcnn/cuda_on_cpu. It may be deleted at any time."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (base / "nprcnn" / "cuda_on_cpu", Path(tempfile.gettempdir()) / f"nprcnn-cuda-on-cpu-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # We load code from here: nobody else may be able to put any there
        if os.access(folder, os.W_OK) and folder.stat().st_uid == os.getuid():
            return folder
    raise CompileError(f"cannot write compiled kernels to {base}; set XDG_CACHE_HOME to a folder of yours")


def build(name, text, flags, depends=(), link=()):
    """Compile a C++ text to a shared library, once for each text, flags and compiler.

    Parameters
    ----------
    name : str, the beginning of the library's name
    text : str, C++
    flags : list of str
    depends : texts that the result depends on beside `text` (headers)
    link : paths of libraries to link to

    Returns
    -------
    Path of the library.

    Raises
    ------
    NoCompiler, CompileError
    """
    path, version = find()
    gnu = ["-fno-gnu-unique"] if "clang" not in version else []      # so that a library can be unloaded
    # Ubuntu's g++ has _FORTIFY_SOURCE on, which takes a longjmp to another stack for an attack
    command = [path, "-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE",
               *gnu, *flags]
    parts = [text, *depends, version, platform.machine(), *map(str, link), *command]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    library = cache_folder() / f"{name}-{key}.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        source, output = Path(folder) / "kernel.cpp", Path(folder) / library.name
        binary, notes = output.with_suffix(".o"), output.with_suffix(".gcno")
        source.write_text(text)
        # No sanitizer when linking: its library comes with the process or, for the inspector, from the engine
        run = subprocess.run([*command, "-c", str(source), "-o", str(binary)], capture_output=True, text=True)
        if run.returncode == 0:
            counters = [flag for flag in flags if flag == "--coverage"]
            run = subprocess.run([path, "-shared", "-pthread", *counters, str(binary), *map(str, link), "-ldl", "-o", str(output)],
                                 capture_output=True, text=True)
        if run.returncode:
            raise CompileError(f"{path} does not accept {name}:\n{run.stderr[:4000]}")
        if notes.exists():               # of --coverage: which lines there are, for gcov
            os.replace(notes, library.with_suffix(".gcno"))
        os.replace(output, library)      # at once: another process sees all of it or nothing
    return library
