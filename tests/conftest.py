"""Before NumPy is loaded: one BLAS thread. The tests' matrices are small, and threads that wait for each other on a busy machine
make them many times slower."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
