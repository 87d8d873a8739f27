"""The reference engine. Importing it leaves the process with one BLAS thread; see `blas`."""

from workers.engines.reference.blas import limit_threads

limit_threads()
