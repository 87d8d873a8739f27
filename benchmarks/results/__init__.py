"""What policies make of traces and of trouble; `make results` writes docs/results.md."""
