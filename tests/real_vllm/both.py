"""Two servers in two sites, and the fleet whose agents speak for them."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleets import Answer, Fleet, free_port, post, running

from controlplane.config import DatacenterConfig, FleetConfig, LinkConfig, ModelConfig, RouterConfig
from controlplane.config_server import EngineServerConfig
from real_vllm.network import MBIT_PER_S, two_sites
from real_vllm.servers import CONTEXT_TOKENS, MODEL, VllmServer, make_models, two_servers

ROLES = ("prefill", "decode")
EXTERNAL = "vllm:prompt_tokens_by_source_total|external_kv_transfer"
COMPUTED = "vllm:prompt_tokens_by_source_total|local_compute"
MOVED = "vllm:nixl_bytes_transferred_sum"
MOVING = "vllm:nixl_xfer_time_seconds_sum"


@dataclass
class Both:
    """The two servers, and the fleet whose agents speak for them."""

    east: VllmServer
    west: VllmServer
    fleet: Fleet

    def decoder(self, answer: Answer) -> VllmServer:
        """The server that an answer was decoded by; it was prefilled by the other one."""
        sites = [answer.headers[f"x-prfaas-{role}"].partition("/")[0] for role in ROLES]
        assert sorted(sites) == ["east", "west"], sites
        return self.east if sites[1] == "east" else self.west

    def counts(self, *names: str) -> dict[int, list[float]]:
        """Metrics of both servers, by id of the server."""
        return {id(one): [one.metric(name) for name in names] for one in (self.east, self.west)}

    def complete(self, **body: Any) -> Answer:
        """A greedy completion through the router."""
        return _ask(self.fleet.url + "/v1/completions", **body)

    def chat(self, **body: Any) -> Answer:
        """A greedy answer through the router."""
        return _ask(self.fleet.url + "/v1/chat/completions", **body)


def _ask(url: str, **body: Any) -> Answer:
    asked = {"model": MODEL, "temperature": 0, "max_tokens": 24, **body}
    return post(url, json.dumps(asked).encode())


def a_fleet(east: VllmServer, west: VllmServer, *, bytes_per_token: int = 0) -> FleetConfig:
    """Prefill in east and, if that fails, in west; decode in west and, if that fails, in east."""
    sites = [
        DatacenterConfig(
            name=name, prefill_servers=(server.listed(),), decode_servers=(server.listed(),)
        )
        for name, server in (("east", east), ("west", west))
    ]
    links = [
        LinkConfig(from_datacenter=a, to_datacenter=b, capacity_mbit_per_s=MBIT_PER_S)
        for a, b in (("east", "west"), ("west", "east"))
    ]
    return FleetConfig(
        name="vllm",
        router=RouterConfig(
            datacenter="west", port=free_port(), admin_port=free_port(), policy="offload_all"
        ),
        model=ModelConfig(
            engine="vllm",
            name=MODEL,
            tokenizer=str(west.model),
            context_tokens_max=CONTEXT_TOKENS,
            decode_slots=16,
            server=EngineServerConfig(kv_bytes_per_token=bytes_per_token),
        ),
        datacenters=tuple(sites),
        links=tuple(links),
    )


@contextlib.contextmanager
def both_sites(model: str, directory: Path, *, bytes_per_token: int = 0) -> Iterator[Both]:
    """
    Servers of a tiny model (`dense` or `hybrid`), over the shaped link; minutes.

    Args:
        model: Which.
        directory: For models, logs and the fleet file.
        bytes_per_token: What the fleet file says of its KV.
    """
    make_models(directory)
    with (
        two_sites() as (east_site, west_site, link),
        two_servers(directory / model, (east_site, west_site), directory) as (east, west),
    ):
        print(f"{model}: {link}")
        config = a_fleet(east, west, bytes_per_token=bytes_per_token)
        with running(config, directory) as fleet:
            yield Both(east, west, fleet)


def some_ids(count: int, seed: int) -> list[int]:
    """Token ids of no text in particular."""
    return random.Random(seed).choices(range(300, 4000), k=count)
