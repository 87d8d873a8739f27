"""Engines behind an HTTP API that nobody here wrote: an agent beside each server speaks for it."""
