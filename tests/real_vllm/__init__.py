"""Real vLLM servers on this machine, for tests: `make test-vllm`."""
