from __future__ import annotations

from typing import Any

import pytest
from builders import a_request, a_view, a_worker

from controlplane.domain.cluster import WorkerView
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.prefix_hits import Numbers, SharedHits
from policies.copies import copy_sources

#: In each datacenter.
_WORKERS = 120


def workers(**overrides: Any) -> list[WorkerView]:
    return [
        a_worker(f"{site}/p{number:03}", **{"can_export_prefix": True, **overrides})
        for site in ("east", "north", "west")
        for number in range(_WORKERS)
    ]


def a_crowd(hit: PrefixHit, **own: PrefixHit) -> SharedHits:
    """All workers of the east and the north hold it; `own` are hits of workers in the west."""
    numbers = Numbers()
    names = [f"{site}/p{number:03}" for site in ("east", "north") for number in range(_WORKERS)]
    bits = sum(1 << numbers.of(name) for name in names)
    return SharedHits(numbers, [(bits, hit)], {f"west/{name}": one for name, one in own.items()})


def given(hits: SharedHits, **overrides: Any) -> dict[str, int]:
    """Tokens that each datacenter could give."""
    request = a_request(prefix_hits=hits)
    return {
        site: copy.tokens
        for site, copy in copy_sources(request, a_view(*workers(**overrides))).items()
    }


def test_a_crowd_gives_a_copy_from_each_datacenter_that_it_is_in() -> None:
    assert given(a_crowd(PrefixHit(64, 64))) == {"east": 64, "north": 64}


def test_a_longer_prefix_beside_a_crowd_comes_first() -> None:
    found = given(a_crowd(PrefixHit(32, 32), p007=PrefixHit(64, 64)))

    assert next(iter(found.items())) == ("west", 64)
    assert found == {"east": 32, "north": 32, "west": 64}


def test_no_more_is_copied_than_the_prompt_has() -> None:
    request = a_request(prefix_hits=a_crowd(PrefixHit(4096, 4096)))

    found = copy_sources(request, a_view(*workers()))

    assert {copy.tokens for copy in found.values()} == {request.prefill_tokens}


@pytest.mark.parametrize(
    "overrides",
    [{"can_export_prefix": False}, {"is_suspect": True}, {"is_draining": True}, {"model": "other"}],
)
def test_a_crowd_that_can_give_nothing_is_asked_in_vain(overrides: dict[str, Any]) -> None:
    assert given(a_crowd(PrefixHit(64, 64)), **overrides) == {}


def test_attention_alone_cannot_be_resumed_from_so_nothing_is_copied() -> None:
    assert given(a_crowd(PrefixHit(64, 0))) == {}
