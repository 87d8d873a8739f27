"""What a router keeps of workers for a life that begins without the store."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from router_builders import DECODE_1, EAST_1, LogBook, a_busy_beat, url_of

from controlplane.errors import ConfigError
from controlplane.router import last_known as module
from controlplane.router.last_known import LastAddress, LastKnown


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> LogBook:
    book = LogBook()
    monkeypatch.setattr(module, "_log", book)
    return book


def the_file(directory: Path) -> Path:
    return directory / "west.workers.json"


def test_what_one_life_wrote_the_next_one_reads(tmp_path: Path) -> None:
    LastKnown(tmp_path, router="west").write([a_busy_beat(EAST_1), a_busy_beat(DECODE_1)])

    assert LastKnown(tmp_path, router="west").read() == (
        LastAddress(worker_id=EAST_1, url=url_of(EAST_1)),
        LastAddress(worker_id=DECODE_1, url=url_of(DECODE_1)),
    )


def test_each_router_has_its_own(tmp_path: Path) -> None:
    LastKnown(tmp_path, router="west").write([a_busy_beat(EAST_1)])

    assert LastKnown(tmp_path, router="other").read() == ()


def test_without_a_directory_nothing_is_kept(tmp_path: Path) -> None:
    kept = LastKnown(None, router="west")
    kept.write([a_busy_beat(EAST_1)])

    assert kept.read() == ()
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    LastKnown(tmp_path / "new", router="west").write([a_busy_beat(EAST_1)])

    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE(the_file(tmp_path / "new").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["west.workers.json"]


def test_it_is_written_when_an_address_has_changed_and_not_else(tmp_path: Path) -> None:
    kept = LastKnown(tmp_path, router="west")
    kept.write([a_busy_beat(EAST_1)])
    the_file(tmp_path).unlink()

    kept.write([a_busy_beat(EAST_1, sequence=2)])
    is_written_again = the_file(tmp_path).exists()
    kept.write([a_busy_beat(EAST_1, url="http://10.0.0.9:1")])

    assert not is_written_again
    assert kept.read() == (LastAddress(worker_id=EAST_1, url="http://10.0.0.9:1"),)


def test_that_nobody_is_known_is_no_news(tmp_path: Path) -> None:
    kept = LastKnown(tmp_path, router="west")
    kept.write([a_busy_beat(EAST_1)])
    kept.write([])

    assert len(kept.read()) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1]",
        b'[{"worker_id": "west/p1"}]',
        b"\xff\x00",
        b'[{"worker_id": "west/p1", "url": "file:///x"}]',
    ],
)
def test_a_file_that_is_none_is_said_and_left_out(
    tmp_path: Path, content: bytes, log: LogBook
) -> None:
    the_file(tmp_path).write_bytes(content)

    assert LastKnown(tmp_path, router="west").read() == ()
    assert log.events == [("warning", "state.unreadable", {"cause": "ValidationError"})]


def test_a_disk_that_takes_nothing_is_said_once(tmp_path: Path, log: LogBook) -> None:
    kept = LastKnown(tmp_path / "state", router="west")
    (tmp_path / "state").rmdir()

    for _ in range(3):
        kept.write([a_busy_beat(EAST_1)])

    assert log.events == [("warning", "state.unwritable", {"cause": "FileNotFoundError"})]


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="PRFAAS_STATE_DIR: cannot make"):
        LastKnown(tmp_path / "file" / "state", router="west")
