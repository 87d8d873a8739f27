"""Measures the profile of an engine, whichever it is."""
