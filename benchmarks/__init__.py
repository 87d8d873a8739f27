"""What the router costs: `python -m benchmarks`, described in docs/benchmarks.md."""
