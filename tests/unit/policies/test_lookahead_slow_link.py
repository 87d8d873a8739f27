"""
Two prefill pools that are alike, behind links of 100 and of 1 Gbit/s, and clients that wait in a loop.

A router that knows caches and queues but not links sends half of the requests over the slow link and
loses most of its throughput (issue 4, section 5.4). Here decisions are real, and time is arithmetic:
workers and links serve one after the other, and the router knows its own claims alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from random import Random

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.cluster import ClusterView
from controlplane.domain.decision import Decision, RequestFeatures
from controlplane.domain.prefix import PrefixHit
from policies.api import Parameters, Policy
from policies.lookahead import LookaheadParameters, LookaheadPolicy
from policies.round_robin import RoundRobinPolicy

CLIENTS = 8
REQUESTS = 600
PROMPT_TOKENS = 1024
KV_BYTES_PER_TOKEN = 256 << 10
RATES_BPS = {"fast": 100e9, "slow": 1e9}


@dataclass
class Loop:
    """Clients that ask again as soon as they are answered."""

    policy: Policy
    pools: tuple[str, ...]
    prefill_s: float
    #: What of the prompts the slow pool has cached, in tokens.
    cached_tokens: int = 0
    worker_free_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    link_free_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    claims: list[tuple[float, str, float, int]] = field(default_factory=list)
    placed: Counter[str] = field(default_factory=Counter)

    def run(self) -> float:
        """Requests per second."""
        asking = [(0.0, client) for client in range(CLIENTS)]
        now_s = 0.0
        for number in range(REQUESTS):
            now_s, client = heappop(asking)
            self.claims = [claim for claim in self.claims if claim[0] > now_s]
            request = self.request(number)
            decision = self.policy.decide(request, self.view(), Random(number))
            heappush(asking, (self.serve(decision, now_s), client))
        return REQUESTS / max(at_s for at_s, _ in asking)

    def request(self, number: int) -> RequestFeatures:
        hits = {}
        if self.cached_tokens:
            hits = {f"slow/p{n}": PrefixHit(self.cached_tokens, self.cached_tokens) for n in (1, 2)}
        return a_request(
            request_id=f"r{number}",
            input_tokens=PROMPT_TOKENS + 1,
            sequence=number,
            prefix_hits=hits,
        )

    def view(self) -> ClusterView:
        """What the router believes: idle workers, and what it has claimed of them itself."""
        queues: dict[str, float] = defaultdict(float)
        promised: dict[str, int] = defaultdict(int)
        waiting: Counter[str] = Counter()
        for _, worker_id, prefill_s, transfer_bytes in self.claims:
            queues[worker_id] += prefill_s
            waiting[worker_id] += 1
            promised[worker_id.partition("/")[0]] += transfer_bytes
        shape = {"kv_bytes_per_token": KV_BYTES_PER_TOKEN, "kv_state_bytes": 0, "requests_max": 64}
        return a_view(
            a_worker("home/d1", slots=64, **shape),
            *(
                a_worker(
                    f"{pool}/p{n}",
                    **shape,
                    prefill_fixed_s=0.0,
                    prefill_s_per_token=self.prefill_s / PROMPT_TOKENS,
                    pending_s=queues[f"{pool}/p{n}"],
                    pending_requests=waiting[f"{pool}/p{n}"],
                )
                for pool in self.pools
                for n in (1, 2)
            ),
            home_datacenter="home",
            links=tuple(
                a_link(
                    pool,
                    "home",
                    capacity_bps=RATES_BPS[pool],
                    rtt_s=0.001,
                    reserved_bytes=promised[pool],
                )
                for pool in self.pools
            ),
        )

    def serve(self, decision: Decision, now_s: float) -> float:
        """When the first token is there: prefill in turn, bytes in turn, whichever is later."""
        assert decision.placement is not None
        assert decision.prediction is not None
        worker_id, it = decision.placement.prefill_worker, decision.prediction
        pool = worker_id.partition("/")[0]
        start_s = max(now_s, self.worker_free_s[worker_id])
        self.worker_free_s[worker_id] = start_s + it.prefill_s
        sent_s = max(start_s, self.link_free_s[pool]) + it.transfer_bytes * 8 / RATES_BPS[pool]
        self.link_free_s[pool] = sent_s
        done_s = max(start_s + it.prefill_s, sent_s) + 0.001
        self.claims.append((done_s, worker_id, it.prefill_s, it.transfer_bytes))
        self.placed[pool] += 1
        return done_s


def lookahead() -> Policy:
    return LookaheadPolicy(LookaheadParameters())


def throughput(
    policy: Callable[[], Policy], pools: tuple[str, ...], prefill_s: float, cached_tokens: int = 0
) -> tuple[float, float]:
    """Requests per second, and the part of them that went over the slow link."""
    loop = Loop(policy(), pools, prefill_s, cached_tokens)
    per_s = loop.run()
    return per_s, loop.placed["slow"] / REQUESTS


@pytest.mark.parametrize("prefill_s", [0.01, 0.05, 0.1, 0.2, 0.4])
def test_the_slow_link_is_left_alone_and_the_fast_pool_is_full(prefill_s: float) -> None:
    alone_per_s, _ = throughput(lookahead, ("fast",), prefill_s)

    per_s, slow_share = throughput(lookahead, ("fast", "slow"), prefill_s)

    assert slow_share <= 0.03
    assert per_s >= 0.95 * alone_per_s


def test_a_cache_behind_the_slow_link_does_not_lure_there() -> None:
    """The trap of routers that know caches but not links: all prompts are cached in the slow pool."""
    alone_per_s, _ = throughput(lookahead, ("fast",), 0.1)

    per_s, slow_share = throughput(lookahead, ("fast", "slow"), 0.1, cached_tokens=1008)

    assert slow_share <= 0.03
    assert per_s >= 0.95 * alone_per_s


def test_turns_lose_most_of_the_throughput() -> None:
    """The arithmetic above does show the trap to those who fall into it."""
    alone_per_s, _ = throughput(lookahead, ("fast",), 0.05)

    per_s, slow_share = throughput(lambda: RoundRobinPolicy(Parameters()), ("fast", "slow"), 0.05)

    assert slow_share == pytest.approx(0.5)
    assert per_s < 0.1 * alone_per_s
