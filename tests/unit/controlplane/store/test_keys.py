"""Names of keys and members, and the page that describes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_builders import a_reservation

from controlplane.store.keys import AMOUNT_MAX, KEY_TABLE, Keys, amount_of

DOCS = Path(__file__).parents[4] / "docs" / "redis.md"


def test_all_keys_of_a_fleet_share_its_hash_tag() -> None:
    keys = Keys("local")
    names = [
        keys.workers,
        keys.events,
        keys.links,
        keys.segments,
        keys.decisions,
        keys.decision_index,
        keys.worker("w"),
        keys.inventory("w"),
        keys.reserved("w"),
        keys.link("east>west"),
        keys.budget("east>west"),
        keys.segment("s"),
        keys.idempotency("k"),
        keys.document("plan"),
        keys.leader("plan"),
        keys.traffic,
        keys.traffic_of("r"),
    ]

    assert all(name.startswith("prfaas:{local}:") for name in names)
    assert len(set(names)) == len(names) == len(KEY_TABLE)


@pytest.mark.parametrize("fleet", ["", "a}b", "a b", "a:b", "a" * 65])
def test_a_name_that_would_break_the_hash_tag_is_refused(fleet: str) -> None:
    with pytest.raises(ValueError, match="fleet name"):
        Keys(fleet)


def test_a_reservation_without_a_link_is_kept_at_two_places() -> None:
    assert Keys("f").claims(a_reservation("id:with:colons")) == [
        ("prfaas:{f}:reserved:p1", "p:100:id:with:colons"),
        ("prfaas:{f}:reserved:d1", "d:0:id:with:colons"),
    ]


def test_a_reservation_with_a_link_is_kept_there_too() -> None:
    claims = Keys("f").claims(a_reservation(link="east>west", link_bytes=10**18))

    assert claims[2] == ("prfaas:{f}:link:east>west", f"l:{AMOUNT_MAX}:r1")


@pytest.mark.parametrize(
    ("member", "amount"),
    [
        (b"p:100:r1", 100),
        (b"d:0:a:b", 0),
        (b"l:999999999999999:r", AMOUNT_MAX),
        (b"l:1000000000000000:r", None),
        (b"p:-1:r", None),
        (b"p:1:", None),
        (b"#", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_a_member_says_its_amount_or_is_garbage(member: bytes, amount: int | None) -> None:
    assert amount_of(member) == amount


def test_the_page_on_redis_has_the_table_of_keys() -> None:
    page = DOCS.read_text(encoding="utf-8")

    for spec in KEY_TABLE:
        cells = (f"`{spec.name}`", spec.type, spec.ttl, spec.owner, spec.writer, spec.lost)
        assert f"| {' | '.join(cells)} |" in page
