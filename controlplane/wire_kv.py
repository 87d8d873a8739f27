"""Messages about KV: what a segment is made of, and where it can be read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from controlplane.wire_types import Count, Message, Name, Seconds


class KvGroup(Message):
    """One kind of KV in a segment."""

    name: Literal["attention", "state"]
    #: Bytes for each token; 0 for state.
    bytes_per_token: Count
    #: Bytes whatever the length; 0 for attention.
    fixed_bytes: Count


class KvManifest(Message):
    """What a segment is made of; sizes and order of its chunks follow (`workers/kv/layout.py`)."""

    fingerprint: Name
    scope: Name
    #: Tokens the segment covers: all of the prompt but its last.
    token_count: Count
    block_tokens: Annotated[int, Field(ge=1)]
    groups: tuple[KvGroup, ...]


class KvLocation(Message):
    """A lease on a versioned thing, never a bare address."""

    worker_id: Name
    datacenter: Name
    incarnation: Name
    segment_id: Name
    #: Counter of the owner, bumped on every reuse of a buffer.
    generation: Count
    host: Annotated[str, Field(max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]
    #: Length of the lease from its last renewal, on the owner's clock.
    lease_s: Seconds
    manifest: KvManifest


class KvAddress(Message):
    """Where readers of KV reach a worker."""

    host: Annotated[str, Field(min_length=1, max_length=255)]
    port: Annotated[int, Field(ge=1, le=65535)]
