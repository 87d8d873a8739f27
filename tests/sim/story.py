"""What happened in a world, in order: told when something is wrong, and part of its digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import structlog

from controlplane.replay.loop import current_host

_TOLD_MAX = 20_000


class Story:
    """Lines with their time and, where it is known, their request."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._digest = blake2b(digest_size=8)
        self.lines: list[tuple[float, str, str]] = []

    def tell(self, text: str, request_id: str = "") -> None:
        """Something happened now."""
        line = (round(self._now_s(), 6), request_id, text)
        self._digest.update(repr(line).encode())
        if len(self.lines) < _TOLD_MAX:
            self.lines.append(line)

    @property
    def digest(self) -> str:
        """Equal for equal stories."""
        return self._digest.hexdigest()

    def of(self, request_id: str | None) -> list[str]:
        """The story of a request and of the world around it; everything for None."""
        return [
            f"{at:10.4f}  {text}"
            for at, whose, text in self.lines
            if request_id is None or not whose or whose.partition(".")[0] == request_id
        ]


@contextmanager
def told_to(story: Story) -> Iterator[None]:
    """While it lasts, what the product logs belongs to the story."""

    def take(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        fields = {
            name: value
            for name, value in event.items()
            if name not in {"event", "request_id", "exc_info", "story"}
        }
        host = current_host()
        who = host.name if host is not None else "world"
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        if error := event.get("exc_info"):
            said += f" {error!r}"
        story.tell(f"{who}: {event['event']} {said}", str(event.get("request_id", "")))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[take],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)
