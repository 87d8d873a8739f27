"""The base of messages, and numbers and names in them, with bounds on what another process computes with."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

#: Bounds far beyond anything real, so that sums and products of them are still finite numbers.
COUNT_MAX: Final = 2**63 - 1
SECONDS_MAX: Final = 1e18
#: Directed links of 64 datacenters.
LINKS_MAX: Final = 64 * 63
#: Entries of an inventory, and of what one worker may keep in the store.
INVENTORY_BLOCKS_MAX: Final = 65536

Seconds: TypeAlias = Annotated[float, Field(ge=0, le=SECONDS_MAX, allow_inf_nan=False)]
Count: TypeAlias = Annotated[int, Field(ge=0, le=COUNT_MAX)]
#: Exact in a double, as Lua has them.
Positive: TypeAlias = Annotated[int, Field(ge=1, le=2**53)]
Name: TypeAlias = Annotated[
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._/:-]+$")
]

#: Hex of a block hash: 32 digits, and room for longer hashes.
BLOCK_NAME_MAX: Final = 64
BlockName: TypeAlias = Annotated[str, Field(max_length=BLOCK_NAME_MAX)]

#: A directed link between two datacenters: "east>west".
LinkId: TypeAlias = Annotated[
    str, Field(max_length=257, pattern=r"^[A-Za-z0-9._/:-]+>[A-Za-z0-9._/:-]+$")
]

WIRE_VERSION: Final = 1


class Message(BaseModel):
    """Base of all messages: immutable, versioned, tolerant of fields from the future."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: Literal[1] = WIRE_VERSION
