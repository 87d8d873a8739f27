from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], None]:
    """Puts a package on the path: its one module, its policy's entry point, the module's source."""
    monkeypatch.syspath_prepend(tmp_path)

    def put(package: str, entry_point: str, source: str) -> None:
        (tmp_path / f"{package}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        points = f"[prfaas.policies]\n{entry_point}\n"
        (info / "entry_points.txt").write_text(points, encoding="utf-8")

    return put
