from __future__ import annotations

from hypothesis import settings

# Without a deadline: what a shared machine does to one example says nothing about the code.
settings.register_profile("project", deadline=None, max_examples=100)
settings.load_profile("project")
