"""Clusters and requests by chance, for Hypothesis: small, but with everything that can go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Any

from builders import a_link, a_request, a_view, a_worker
from hypothesis import strategies as st

from controlplane.domain.cluster import ClusterView, LinkView, WorkerView
from controlplane.domain.decision import RequestFeatures
from controlplane.domain.modes import MODES
from controlplane.domain.plan import NEVER_TOKENS, Plan, ShadowPrices
from controlplane.domain.prefix import PrefixHit
from controlplane.domain.tokens import TokenIds
from policies.api import Parameters, Policy
from policies.balanced_split import BalancedSplitParameters, BalancedSplitPolicy
from policies.least_loaded import LeastLoadedPolicy
from policies.local_only import LocalOnlyPolicy
from policies.lookahead import LookaheadParameters, LookaheadPolicy
from policies.offload_all import OffloadAllPolicy
from policies.power_of_two import PowerOfTwoPolicy
from policies.prefix_affinity import PrefixAffinityParameters, PrefixAffinityPolicy
from policies.prfaas import PrfaasParameters, PrfaasPolicy
from policies.round_robin import RoundRobinPolicy
from policies.static_threshold import StaticThresholdParameters, StaticThresholdPolicy

DATACENTERS = ("east", "north", "west")
WORKER_IDS = tuple(f"{site}/{name}" for site in DATACENTERS for name in ("d1", "d2", "p1", "p2"))

#: What can be wrong with a worker; most often nothing.
TROUBLES: tuple[dict[str, Any], ...] = (
    *({},) * 17,
    {"model": "n"},
    {"fingerprint": "g"},
    {"fingerprint": "g"},
    {"context_tokens_max": 64},
    {"is_draining": True},
    {"is_suspect": True},
    {"is_ejected": True},
    {"is_suspect": True, "is_needed": True},
    {"share": 0.1},
    {"share": 0.5},
    {"pending_requests": 16},
)

amounts = st.sampled_from((0, 1, 7)) | st.integers(0, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """All that a policy is asked with, and the policy."""

    policy: Policy
    request: RequestFeatures
    view: ClusterView
    seed: int


@st.composite
def workers(draw: st.DrawFn, worker_id: str) -> WorkerView:
    """One worker, most often able to take a request."""
    load = {
        "pending_requests": draw(st.integers(0, 6)),
        "pending_tokens": draw(amounts),
        "pending_s": draw(st.just(0.0) | st.floats(0, 100)),
        "prefill_s_per_token": draw(st.sampled_from((0.0, 0.001)) | st.floats(0, 1)),
        "prefill_s_per_token_squared": draw(st.sampled_from((0.0, 1e-6)) | st.floats(0, 1e-3)),
        "kv_bytes_per_token": draw(amounts),
        "kv_state_bytes": draw(amounts),
    }
    return a_worker(worker_id, **{**load, **draw(st.sampled_from(TROUBLES))})


@st.composite
def links(draw: st.DrawFn, from_datacenter: str, to_datacenter: str) -> LinkView:
    """One link, idle or busy, measured or not."""
    return a_link(
        from_datacenter,
        to_datacenter,
        capacity_bps=draw(st.floats(1e3, 1e11)),
        goodput_bps=draw(st.just(0.0) | st.floats(0, 1e11)),
        reserved_bytes=draw(amounts),
        is_down=draw(st.sampled_from((False, False, False, True))),
        is_measured=draw(st.booleans()),
        is_scarce=draw(st.sampled_from((False, False, True))),
        egress_price_per_gb=draw(st.sampled_from((0.0, 0.02))),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Thresholds and prices for some of the pairs."""
    pairs = draw(
        st.sets(st.sampled_from([">".join(pair) for pair in permutations(DATACENTERS, 2)]))
    )
    sites = draw(st.sets(st.sampled_from(DATACENTERS)))
    return Plan(
        version=draw(st.integers(1, 9)),
        author="west/router-1",
        threshold_tokens={
            pair: draw(st.sampled_from((0.0, 50.0, NEVER_TOKENS)) | st.floats(0, 300))
            for pair in sorted(pairs)
        },
        prices=ShadowPrices(
            prefill_per_s={site: draw(st.floats(0, 5)) for site in sorted(sites)},
            link_per_byte={pair: draw(st.floats(0, 1e-6)) for pair in sorted(pairs)},
        ),
        throughput_per_s=draw(st.sampled_from((0.0, 3.2))),
        load=draw(st.floats(0, 2)),
    )


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    """A cluster of up to eight workers in up to three datacenters."""
    usual = draw(st.sampled_from(((), ("east/p1", "west/d1", "west/p1"))))
    ids = sorted({*usual, *draw(st.lists(st.sampled_from(WORKER_IDS), unique=True, max_size=5))})
    sites = sorted({worker_id.partition("/")[0] for worker_id in ids})
    pairs = draw(st.sets(st.sampled_from(list(permutations(DATACENTERS, 2)))))
    return a_view(
        epoch=draw(st.integers(0, 1 << 60)),
        age_s=draw(st.floats(0, 1e6)),
        home_datacenter=draw(st.sampled_from(sites or DATACENTERS)),
        workers=tuple(draw(workers(worker_id)) for worker_id in ids),
        mode=draw(st.sampled_from(("normal", "normal", *MODES))),
        prefix_trust=draw(st.sampled_from((1.0, 1.0, 0.5, 0.0))),
        links=tuple(draw(links(*pair)) for pair in sorted(pairs)),
        plan=draw(st.none() | plans()),
    )


@st.composite
def requests(draw: st.DrawFn) -> RequestFeatures:
    """A prompt of up to 300 tokens, cached here and there in blocks of 16."""
    input_tokens = draw(st.integers(1, 300))
    hits: dict[str, PrefixHit] = {}
    for worker_id in draw(st.lists(st.sampled_from(WORKER_IDS), unique=True, max_size=4)):
        blocks = draw(st.integers(0, input_tokens // 16))
        hits[worker_id] = PrefixHit(blocks * 16, draw(st.integers(0, blocks)) * 16)
    return a_request(
        input_tokens=input_tokens,
        output_tokens_max=draw(st.integers(1, 64)),
        sequence=draw(st.integers(0, 1 << 40)),
        prefix_hits=hits,
        excluded=tuple(draw(st.lists(st.sampled_from(WORKER_IDS), unique=True, max_size=1))),
        allowed_datacenters=draw(
            st.sampled_from((None, None, None, DATACENTERS, ("east", "west")))
        ),
        ttft_deadline_s=draw(st.none() | st.floats(0, 100)),
    )


policies: st.SearchStrategy[Policy] = st.one_of(
    st.builds(
        PrfaasPolicy,
        st.builds(
            PrfaasParameters,
            threshold_tokens=st.integers(0, 300),
            copies=st.booleans(),
            spills_home=st.booleans(),
            spills_away=st.booleans(),
        ),
    ),
    st.builds(LookaheadPolicy, st.builds(LookaheadParameters, copies=st.booleans())),
    st.builds(
        BalancedSplitPolicy,
        st.builds(
            BalancedSplitParameters, offloaded_share=st.none() | st.sampled_from((0.0, 0.4, 1.0))
        ),
    ),
    st.builds(
        StaticThresholdPolicy,
        st.builds(StaticThresholdParameters, threshold_tokens=st.integers(0, 300)),
    ),
    st.sampled_from(
        (
            LeastLoadedPolicy(Parameters()),
            LocalOnlyPolicy(Parameters()),
            OffloadAllPolicy(Parameters()),
            PowerOfTwoPolicy(Parameters()),
            PrefixAffinityPolicy(PrefixAffinityParameters()),
            RoundRobinPolicy(Parameters()),
        )
    ),
)

situations = st.builds(
    Situation,
    policy=policies,
    request=requests(),
    view=views(),
    seed=st.integers(0, (1 << 64) - 1),
)

prompts = st.sampled_from((2, 4)).flatmap(
    lambda width: st.builds(
        TokenIds.from_ints,
        st.lists(st.integers(0, (1 << (8 * width)) - 1), max_size=60),
        st.just(width),
    )
)
