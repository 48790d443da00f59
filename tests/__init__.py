"""Set before NumPy is imported: test processes run side by side, and BLAS threads that spin would be in their way."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
