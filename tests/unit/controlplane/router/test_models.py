"""Which scope requests are hashed with while a fleet is upgraded, and that no hit crosses it."""

from __future__ import annotations

import pytest
from builders import a_beat, a_prompt
from router_builders import a_link_config

from controlplane.config import DatacenterConfig, FleetConfig, ModelConfig, RouterConfig
from controlplane.domain.prefix import block_hashes, scope_of
from controlplane.edge.requests import ModelFacts
from controlplane.router.models import ModelBook, leading_fingerprint
from controlplane.router.view import ViewTracker
from controlplane.store.api import WorkerLeft, WorkerSeen
from controlplane.wire import Inventory, WorkerBeat

FLEET = FleetConfig(
    router=RouterConfig(datacenter="west"),
    model=ModelConfig(name="m"),
    datacenters=(
        DatacenterConfig(name="east", prefill_workers=1),
        DatacenterConfig(name="west", decode_workers=1),
    ),
    links=(a_link_config(),),
)


class Fleet:
    """A router's book, and the workers it hears of."""

    def __init__(self, *beats: WorkerBeat) -> None:
        self.tracker = ViewTracker(
            home_datacenter="west", links=FLEET.links, ttl_s=5.0, clock=lambda: 0.0
        )
        self.book = ModelBook(FLEET, self.tracker)
        self.see(*beats)

    def see(self, *beats: WorkerBeat) -> None:
        self.tracker.apply_events([WorkerSeen(beat) for beat in beats])

    def restart(self, worker_id: str, fingerprint: str) -> None:
        """A worker comes back with other weights."""
        self.see(a_beat(worker_id, incarnation=f"i-{fingerprint}", fingerprint=fingerprint))

    @property
    def facts(self) -> ModelFacts:
        return self.book()["m"]

    @property
    def leader(self) -> str:
        """Whose scope new requests have."""
        scopes = {scope_of(model="m", fingerprint=one, tenant_salt="local"): one for one in "fgh"}
        return scopes[self.facts.scope]


def decoders(count: int, fingerprint: str = "f") -> list[WorkerBeat]:
    return [a_beat(f"west/d{number}", fingerprint=fingerprint) for number in range(count)]


@pytest.mark.parametrize(
    ("counts", "current", "leads"),
    [
        pytest.param({}, "", "", id="nobody yet"),
        pytest.param({}, "f", "f", id="nobody any more"),
        pytest.param({"f": 1}, "", "f", id="the first"),
        pytest.param({"f": 1, "g": 3}, "", "g", id="at the start the most"),
        pytest.param({"g": 2, "f": 2}, "", "f", id="equals by name"),
        pytest.param({"f": 2, "g": 3}, "f", "f", id="a few more are not enough"),
        pytest.param({"f": 1, "g": 2}, "f", "g", id="twice as many"),
        pytest.param({"f": 1, "g": 2}, "g", "g", id="and it stays"),
        pytest.param({"g": 1}, "f", "g", id="nobody has the current one"),
    ],
)
def test_the_fingerprint_that_leads(counts: dict[str, int], current: str, leads: str) -> None:
    assert leading_fingerprint(counts, current) == leads


def test_the_configured_model_is_there_before_its_workers() -> None:
    assert list(Fleet().book()) == ["m"]


def test_decode_workers_say_which_fingerprint_leads() -> None:
    """Whoever was heard first."""
    fleet = Fleet(
        a_beat("east/p1", fingerprint="g"), a_beat("east/p2", fingerprint="g"), *decoders(1)
    )

    assert fleet.leader == "f"


def test_a_rolling_upgrade_changes_the_scope_once() -> None:
    fleet = Fleet(*decoders(4))
    leaders = [fleet.leader]

    for number in range(4):
        fleet.restart(f"west/d{number}", "g")
        leaders.append(fleet.leader)

    assert leaders == ["f", "f", "f", "g", "g"]


def test_a_worker_that_comes_and_goes_changes_nothing() -> None:
    fleet = Fleet(*decoders(2), a_beat("west/d9", fingerprint="g"))
    facts = fleet.facts

    fleet.tracker.apply_events([WorkerLeft("west/d0", "i1")])
    one_each = fleet.facts
    fleet.tracker.apply_events([WorkerLeft("west/d1", "i1"), WorkerLeft("west/d9", "i1")])
    nobody = fleet.facts

    assert one_each is facts
    assert nobody is facts


def test_another_model_has_no_say() -> None:
    fleet = Fleet(*decoders(1), *(a_beat(f"east/d{n}", model="n", fingerprint="g") for n in "123"))

    assert fleet.leader == "f"


def test_blocks_are_as_long_as_those_of_the_leading_workers() -> None:
    fleet = Fleet(
        *decoders(2), a_beat("west/p1", block_tokens=16), a_beat("west/d8", block_tokens=32)
    )

    assert fleet.facts.block_tokens == 16


def test_facts_are_made_anew_only_when_workers_change() -> None:
    fleet = Fleet(*decoders(2))
    facts = fleet.facts

    fleet.see(a_beat("west/d0", sequence=2))

    assert fleet.facts is facts


def test_a_prefix_hit_never_crosses_fingerprints() -> None:
    """The hashes of a request have its scope in them, and the scope has the fingerprint."""
    prompt = a_prompt(64)
    hashes = {
        fingerprint: block_hashes(
            prompt,
            block_tokens=16,
            scope=scope_of(model="m", fingerprint=fingerprint, tenant_salt="local"),
        )
        for fingerprint in "fg"
    }
    fleet = Fleet(
        *(
            a_beat(
                f"west/d{fingerprint}",
                fingerprint=fingerprint,
                inventory=Inventory.model_validate(
                    {"is_full": True, "stored": {one.hex(): "as" for one in hashes[fingerprint]}}
                ),
            )
            for fingerprint in "fg"
        )
    )

    hits = {
        fingerprint: list(fleet.tracker.match(hashes[fingerprint], block_tokens=16))
        for fingerprint in "fg"
    }

    assert hits == {"f": ["west/df"], "g": ["west/dg"]}
