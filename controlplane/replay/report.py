"""Results as JSON: one document for all policies of a replay."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from controlplane.errors import ConfigError
from controlplane.replay.results import PolicyResult

#: Format of the document.
_VERSION = 1


def document(results: Sequence[PolicyResult], settings: Mapping[str, Any]) -> dict[str, Any]:
    """
    What `--json` writes.

    Args:
        results: One for each policy.
        settings: What was replayed, and how.
    """
    return {
        "version": _VERSION,
        "settings": dict(settings),
        "digest": digest_of(results),
        "policies": [asdict(result) for result in results],
    }


def digest_of(results: Sequence[PolicyResult]) -> str:
    """Equal for equal replays, on every machine."""
    figures = json.dumps([asdict(result) for result in results], sort_keys=True)
    return sha256(figures.encode()).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """
    Write a file, whole or not at all.

    Raises:
        ConfigError: It cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {path}: {error}") from error
