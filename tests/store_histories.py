"""What fleets do with a store, by chance, and what can be seen of it afterwards."""

from __future__ import annotations

from random import Random
from typing import Any, TypeAlias

from store_builders import TTL_S, a_beat, a_location, a_reservation, delta, full

from controlplane.store.api import Blamed, StateStore
from controlplane.store.codec import FIRST

#: Name of a method, its arguments, its options.
Step: TypeAlias = tuple[str, tuple[Any, ...], dict[str, Any]]

LINKS = ("east>west", "west>east", None)


def a_history(rng: Random, length: int) -> list[Step]:
    """Calls a fleet might make, late, repeated and missing ones among them."""
    sequences = {"p1": 0, "p2": 0, "d1": 0}
    reservations = [
        a_reservation(
            f"r{number}",
            prefill_worker=rng.choice(("p1", "p2")),
            prefill_incarnation=rng.choice(("one", "one", "two")),
            prefill_tokens=rng.randrange(1000),
            prefill_requests_max=rng.randrange(1, 6),
            link=rng.choice(LINKS),
            link_bytes=rng.randrange(10**9),
        )
        for number in range(12)
    ]
    history: list[Step] = []
    for step in range(length):
        worker_id = rng.choice(tuple(sequences))
        incarnation = rng.choice(("one", "one", "one", "two"))
        match rng.randrange(13):
            case 0 | 1 | 2 | 3:
                sequences[worker_id] += rng.choice((0, 1, 1, 1, 1, 2))
                change = delta(rng.choice("abc") * 2, **{rng.choice("abc") * 2: "as"})
                beat = a_beat(
                    worker_id,
                    incarnation=incarnation,
                    sequence=max(1, sequences[worker_id]),
                    inventory=rng.choice((change, change, full(aa="a", dd="s"))),
                )
                history.append(("heartbeat", (beat,), {"ttl_s": TTL_S}))
            case 4 | 5 | 6:
                history.append(("reserve", (rng.choice(reservations),), {}))
            case 7:
                history.append(("release", (rng.choice(reservations),), {}))
            case 8:
                done = rng.choice((*reservations, None))
                item = (done, f"decision-{rng.randrange(12)}", b"%d" % step)
                history.append(("finish", ([item],), {}))
            case 9:
                owner = f"router-{rng.randrange(2)}"
                claim = {"owner": owner, "digest": rng.choice("ab"), "ttl_s": TTL_S}
                renewal = rng.random() < 0.2
                history.append(
                    rng.choice(
                        (
                            ("claim_key", ("key",), claim | {"is_renewal": renewal}),
                            ("release_key", ("key",), {"owner": owner, "keep_s": TTL_S}),
                        )
                    )
                )
            case 10:
                expected = rng.choice((None, None, 0, 1, 2, 3))
                body = b"%d" % rng.randrange(3)
                history.append(("publish", ("plan", body), {"expected_version": expected}))
            case 11:
                blamed = Blamed(f"f{rng.randrange(3)}", worker_id, incarnation)
                history.append(("blame", (blamed,), {}))
            case _:
                name = f"s{rng.randrange(4)}"
                location = a_location(name, lease_s=TTL_S + step)
                history.append(
                    rng.choice(
                        (
                            ("deregister", (worker_id, incarnation), {}),
                            ("put_segment", (location,), {}),
                            ("drop_segment", (name,), {}),
                            ("lead", ("plan", name), {"ttl_s": TTL_S}),
                            ("resign", ("plan", name), {}),
                            ("put_traffic", (name, b"%d" % step), {"ttl_s": TTL_S + step}),
                        )
                    )
                )
    return history


async def picture(store: StateStore) -> dict[str, Any]:
    """All that can be read, but for the cursors."""
    snapshot = await store.snapshot()
    _, events = await store.events(FIRST, wait_s=0)
    return {
        "beats": snapshot.beats,
        "loads": snapshot.loads,
        "links": snapshot.link_reserved_bytes,
        "events": list(events),
        "decisions": [item.record for item in await store.decisions(count=99)],
        "plan": await store.document("plan"),
        "traffic": list(await store.traffic()),
        "segments": list(await store.segments(count=99)),
    }
