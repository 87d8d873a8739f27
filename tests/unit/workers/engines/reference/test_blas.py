from __future__ import annotations

import subprocess
import sys

import pytest

_REPORT = """
import ctypes, os
{first}
import workers.engines.reference.blas as blas
library = ctypes.CDLL(str(next(blas._bundled_libraries())))
print(library.scipy_openblas_get_num_threads64_(), os.environ["OPENBLAS_NUM_THREADS"])
"""


@pytest.mark.parametrize("first", ["pass", "import numpy"], ids=["before numpy", "after numpy"])
def test_importing_the_engine_leaves_one_blas_thread(first: str) -> None:
    script = _REPORT.format(first=first)

    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={}
    )

    assert found.stdout.split() == ["1", "1"]
