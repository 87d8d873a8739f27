"""Hybrid models of the `transformers` library, on a processor or a GPU; needs the extra `prfaas[torch]`."""
