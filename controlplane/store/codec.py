"""What comes out of the store, decoded; garbage counts as absent and never as an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Final, TypeAlias

from pydantic import ValidationError
from pydantic_core import from_json

from controlplane.errors import MalformedRequest, RequestTooLarge
from controlplane.store.api import (
    TOPICS,
    Blamed,
    Cursor,
    Document,
    KeyClaim,
    Published,
    StoreEvent,
    Topic,
    WorkerLeft,
    WorkerSeen,
)
from controlplane.store.keys import INVENTORY_COMPLETE, LIFE_MAX_MS, amount_of
from controlplane.wire import Inventory, KvLocation, ReserveReply, WorkerBeat
from controlplane.wire_types import BLOCK_NAME_MAX, INVENTORY_BLOCKS_MAX

#: Stream id and fields of one entry.
Entry: TypeAlias = tuple[str, dict[bytes, bytes]]

#: A cursor before the first entry of any stream.
FIRST: Final = "0-0"

#: What `claim_key.lua` answers, by number.
CLAIMS: Final[tuple[KeyClaim, ...]] = ("granted", "in_use", "mismatch")

_VERSION = re.compile(rb"[1-9][0-9]{0,14}")
_CURSOR = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


def check_cursor(cursor: Cursor) -> None:
    """
    Refuse what no store gave out.

    Raises:
        MalformedRequest: Not a cursor.
    """
    if not _CURSOR.fullmatch(cursor):
        raise MalformedRequest("a cursor is what an earlier answer gave, unchanged", param="cursor")


def topic_of(name: str) -> Topic:
    """
    A topic by its name.

    Raises:
        ValueError: There is none of that name.
    """
    for topic in TOPICS:
        if name == topic:
            return topic
    raise ValueError(f"there is no topic {name!r}")


def is_json(body: bytes) -> bool:
    """Whether a document can be read at all; what it means only its readers know."""
    try:
        from_json(body)
    except ValueError:
        return False
    return True


def check_document(body: bytes, *, bytes_max: int) -> None:
    """
    Refuse what nobody could read.

    Raises:
        RequestTooLarge: Over `bytes_max`.
        MalformedRequest: Not JSON.
    """
    if len(body) > bytes_max:
        raise RequestTooLarge(f"a document has at most {bytes_max} bytes, not {len(body)}")
    if not is_json(body):
        raise MalformedRequest("a document is JSON", param="body")


class Decoder:
    """
    Decodes replies and counts what could not be decoded.

    A reply that is an error stands for a key of a wrong type, one that is None for an absent key.
    """

    def __init__(self) -> None:
        #: Values that were not what they should be, and keys that scripts had to repair.
        self.errors_total = 0

    def numbers(self, reply: object) -> list[int]:
        """What a script returned but for its last number, the keys it had to repair."""
        *numbers, repaired = [item for item in self.items(reply) if isinstance(item, int)]
        self.errors_total += repaired
        return numbers

    def reserve_reply(self, reply: object) -> ReserveReply:
        """What `reserve.lua` returned."""
        refused_by, *counts = self.items(reply)
        tokens, requests, decode_requests, link_bytes = self.numbers(counts)
        return ReserveReply.model_validate(
            {
                "refused_by": self.text(refused_by) or None,
                "prefill_reserved_tokens": tokens,
                "prefill_reserved_requests": requests,
                "decode_reserved_requests": decode_requests,
                "link_reserved_bytes": link_bytes,
            }
        )

    def items(self, reply: object) -> list[object]:
        """A list; empty if the key is absent or of a wrong type."""
        if isinstance(reply, list):
            return reply
        self.errors_total += reply is not None
        return []

    def pairs(self, reply: object) -> list[tuple[bytes, bytes]]:
        """A flat list of names and values, as hashes and scored members come."""
        flat = [item for item in self.items(reply) if isinstance(item, bytes)]
        return list(zip(flat[::2], flat[1::2], strict=False))

    def text(self, raw: object) -> str | None:
        """UTF-8 text."""
        if isinstance(raw, bytes):
            try:
                return raw.decode()
            except UnicodeDecodeError:
                pass
        self.errors_total += raw is not None
        return None

    def cursor(self, raw: object) -> Cursor | None:
        """The id of a stream's entry."""
        text = self.text(raw)
        if text is None or _CURSOR.fullmatch(text):
            return text
        self.errors_total += 1
        return None

    def document(self, reply: object) -> Document | None:
        """What `document.lua` returned."""
        body, *numbers = self.items(reply)
        (version,) = self.numbers(numbers)
        if isinstance(body, bytes) and is_json(body):
            return Document(version=version, body=body)
        self.errors_total += body is not None
        return None

    def json(self, raw: object) -> bytes | None:
        """JSON, unread; None if it is garbage, or has expired since it was listed."""
        if isinstance(raw, bytes) and is_json(raw):
            return raw
        self.errors_total += raw is not None
        return None

    def milliseconds(self, reply: object) -> int:
        """The server's clock, from TIME."""
        seconds, microseconds = (int(part) for part in self.items(reply) if isinstance(part, bytes))
        return seconds * 1000 + microseconds // 1000

    def live_members(self, reply: object, now_ms: int) -> list[str]:
        """Members of a zset scored by expiry that are not over, sorted."""
        names: list[str | None] = []
        for name, score in self.pairs(reply):
            if now_ms < float(score) < now_ms + LIFE_MAX_MS:
                names.append(self.text(name))
            else:
                self.errors_total += float(score) > now_ms
        return sorted(name for name in names if name is not None)

    def amounts(self, reply: object) -> list[int]:
        """What the members of a reservation zset stand for: tokens, or bytes."""
        members = [item for item in self.items(reply) if isinstance(item, bytes)]
        amounts = [amount for member in members if (amount := amount_of(member)) is not None]
        self.errors_total += len(members) - len(amounts)
        return amounts

    def beat(self, raw: object, worker_id: str, inventory: object) -> WorkerBeat | None:
        """A worker of the snapshot, its inventory in full."""
        stored = self._stored(inventory)
        if isinstance(raw, bytes):
            try:
                beat = WorkerBeat.model_validate_json(raw)
                full = Inventory.model_validate({"is_full": True, "stored": stored})
            except ValidationError:
                pass
            else:
                if beat.worker_id == worker_id:
                    return beat.model_copy(update={"inventory": full})
        # None: it expired since the index was read.
        self.errors_total += raw is not None
        return None

    def _stored(self, reply: object) -> dict[str, str]:
        pairs = dict(self.pairs(reply))
        pairs.pop(INVENTORY_COMPLETE, None)
        stored = {
            block.decode(): what.decode()
            for block, what in pairs.items()
            if what in {b"a", b"s", b"as"} and _is_hex(block)
        }
        if len(stored) > INVENTORY_BLOCKS_MAX:
            # More than our scripts ever leave: the rest was written by something else.
            stored = dict(islice(stored.items(), INVENTORY_BLOCKS_MAX))
        self.errors_total += len(pairs) - len(stored)
        return stored

    def location(self, raw: object, segment_id: str) -> KvLocation | None:
        """A KV location that stands where this segment's should."""
        if isinstance(raw, bytes):
            try:
                location = KvLocation.model_validate_json(raw)
            except ValidationError:
                pass
            else:
                if location.segment_id == segment_id:
                    return location
        self.errors_total += raw is not None
        return None

    def entries(self, reply: object) -> list[Entry]:
        """Entries of a stream."""
        entries: list[Entry] = []
        for item in self.items(reply):
            match item:
                case [bytes() as entry_id, list() as flat]:
                    fields = dict(zip(flat[::2], flat[1::2], strict=False))
                    entries.append((entry_id.decode(), fields))
                case _:
                    self.errors_total += 1
        return entries

    def field(self, fields: Mapping[bytes, bytes], name: bytes) -> bytes | None:
        """One field of an entry that must have it."""
        value = fields.get(name)
        self.errors_total += value is None
        return value

    def event(self, fields: Mapping[bytes, bytes]) -> StoreEvent | None:
        """One entry of the event stream."""
        try:
            match fields:
                case {b"beat": raw, b"inventory": change}:
                    inventory = Inventory.model_validate_json(change)
                    # Raises for a block that is not hexadecimal, before a router meets it.
                    inventory.to_delta()
                    beat = WorkerBeat.model_validate_json(raw)
                    return WorkerSeen(beat.model_copy(update={"inventory": inventory}))
                case {b"beat": raw}:
                    return WorkerSeen(WorkerBeat.model_validate_json(raw))
                case {b"left": worker_id, b"incarnation": incarnation}:
                    return WorkerLeft(worker_id.decode(), incarnation.decode())
                case {b"blamed": request, b"worker": worker_id, b"incarnation": incarnation}:
                    return Blamed(request.decode(), worker_id.decode(), incarnation.decode())
                case {b"published": topic, b"version": version}:
                    return Published(topic_of(topic.decode()), _version_of(version))
                case _:
                    pass
        except ValueError:
            # A ValidationError and a UnicodeDecodeError are ValueErrors too.
            pass
        self.errors_total += 1
        return None


def _version_of(raw: bytes) -> int:
    if not _VERSION.fullmatch(raw):
        raise ValueError("versions of documents begin at 1")
    return int(raw)


def _is_hex(block: bytes) -> bool:
    try:
        bytes.fromhex(block.decode())
    except ValueError:
        return False
    return len(block) <= BLOCK_NAME_MAX
