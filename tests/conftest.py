"""Before NumPy is loaded: one BLAS thread. The tests' matrices are small, and threads that wait for each other on a busy machine
make them many times slower."""

import os

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.fixture(params=["numpy", "numba", "cuda-on-cpu"], scope="session")
def kernels(request):
    """The KernelSets in turn: a test of an operation that takes this argument is the one body for every implementation."""
    from nprcnn import backend
    from nprcnn.errors import BackendError
    try:
        return backend.kernel_set(request.param)
    except BackendError as error:  # Numba, or a C++ compiler, is not there
        pytest.skip(str(error))
