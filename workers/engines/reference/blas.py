"""
One BLAS thread in every process that has a reference engine.

Workers share a machine, and threads that wait for each other on busy cores are many times slower
than one. And a product that is split over threads may round differently from one that is not,
which would break equality between processes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Set before the first import of NumPy, these bound the pools of the BLAS builds it may come with.
THREAD_VARIABLES: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
#: Names that the OpenBLAS inside NumPy's wheels gives to `openblas_set_num_threads`.
_SETTERS: Final = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)

for _variable in THREAD_VARIABLES:
    os.environ.setdefault(_variable, "1")


def limit_threads() -> bool:
    """
    Set the pool of an OpenBLAS that came with NumPy's wheel to one thread.

    The variables above come too late when something else imported NumPy first.

    Returns:
        Whether such a library was found; others follow the variables alone.
    """
    for path in _bundled_libraries():
        library = ctypes.CDLL(str(path))  # already loaded: this only finds its handle
        for name in _SETTERS:
            if hasattr(library, name):
                getattr(library, name)(ctypes.c_int(1))
                return True
    return False


def _bundled_libraries() -> Iterator[Path]:
    import numpy as np  # noqa: PLC0415 - the variables of this module must come first

    package = Path(np.__file__).parent
    for folder in (package.parent / "numpy.libs", package / ".dylibs"):
        yield from sorted(folder.glob("*openblas*"))
