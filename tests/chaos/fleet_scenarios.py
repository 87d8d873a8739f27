"""Scenarios of a fleet as a whole: half of it gone, split, of two versions, or overrun."""

from __future__ import annotations

from typing import Final

from chaos.plans import always, check, correct
from chaos.plant import FAR, HOME, Topology
from chaos.scenario import Event, Form, Scenario
from controlplane.config import LimitsConfig, ModelConfig

#: So little that it, and not the processors of this machine, is what is scarce when all prefill
#: crosses it.
_LINK_MBIT_PER_S: Final = 16.0
_LONG: Final = LimitsConfig(request_timeout_s=55.0)


def prefill_site_lost(form: Form) -> Scenario:
    """All prefill workers of the decode workers' own datacenter die: the others take over."""
    if form == "short":
        return Scenario(
            name="site-lost",
            fault="SIGKILL of all prefill workers of a datacenter, for 3 s",
            seconds=6.0,
            plan=always((Event(at_s=1.0, do="kill_all", target=f"{HOME}/prefill", for_s=3.0),)),
            checks=(*correct("P08"), check("broken", 0, "P08"), check("success", 0.99, "P08")),
        )
    return Scenario(
        name="site-lost",
        fault="all prefill workers of a datacenter killed, the others asked for 1.5 times what "
        "they can do over their link",
        seconds=60.0,
        load_share=0.0,
        plan=always((Event(at_s=0.5, do="kill_all", target=f"{HOME}/prefill", for_s=130.0),)),
        probe="load_what_is_left",
        # Each request costs the same: nothing is found in a cache.
        topology=Topology(
            limits=_LONG,
            model=ModelConfig(layers=4, context_tokens_max=2048, cache_tokens_max=0),
            link_mbit_per_s=_LINK_MBIT_PER_S,
        ),
        checks=(
            *correct("P08"),
            check("broken", 0, "P08"),
            check("goodput", 0.95, "P08"),
            check("egress", 1.0, "P08", mbit_per_s=_LINK_MBIT_PER_S),
            check("fair_share", 0.8, "P08"),
            check("refused_politely", 0, "P08"),
        ),
    )


def split_brain(form: Form) -> Scenario:
    """Two Redis primaries, half of the routers and workers at each."""
    for_s = 60.0 if form == "long" else 7.0
    return Scenario(
        name="split-brain",
        fault=f"two Redis primaries for {for_s:g} s, half of all routers and workers at each",
        seconds=for_s + 3.0,
        plan=always((Event(at_s=0.5, do="split", for_s=for_s),)),
        topology=Topology(limits=_LONG, has_second_redis=True),
        checks=(
            *correct("P17"),
            check("broken", 0, "P17"),
            check("success", 0.99, "P17"),
            check("served_by_halves", 1, "P17"),
        ),
    )


def mixed_versions(form: Form) -> Scenario:
    """The version before this one and this one serve together, whoever is which."""
    if form == "short":
        names = ("router-1", f"{FAR}/prefill-1", f"{HOME}/prefill-1", f"{HOME}/decode-1")
        return Scenario(
            name="versions",
            fault="a router, two prefill workers and a decode worker of the version before",
            seconds=11.0,
            plan=always((Event(at_s=0.5, do="mix", for_s=4.0, options={"names": names}),)),
            checks=(
                *correct("P10"),
                check("broken", 0, "P10"),
                check("success", 0.99, "P10"),
                check("version_pairs", 1, "P10"),
            ),
        )
    return Scenario(
        name="versions",
        fault="rolling upgrade from the version before, workers first, and back again",
        seconds=130.0,
        plan=always(
            (
                Event(at_s=2.0, do="upgrade", options={"to": "new"}),
                Event(at_s=65.0, do="upgrade", options={"to": "old"}),
            )
        ),
        topology=Topology(limits=_LONG, is_old=True),
        checks=(
            *correct("P10"),
            check("broken", 0, "P10"),
            check("success", 0.999, "P10"),
            check("version_pairs", 6, "P10"),
        ),
    )


def reconnect_herd() -> Scenario:
    """Many routers find their store again at the same moment."""
    return Scenario(
        name="herd-store",
        fault="Redis killed for 5 s under 8 routers",
        seconds=12.0,
        plan=always((Event(at_s=1.0, do="herd", for_s=5.0),)),
        topology=Topology(limits=_LONG, routers=8, far_prefill=1, home_prefill=1, decode=2),
        checks=(
            *correct("P20"),
            check("broken", 0, "P20"),
            check("success", 0.999, "P20"),
            check("connects", 2.0, "P20", needs=8),
        ),
    )


def same_prompt_herd() -> Scenario:
    """A thousand requests with one prompt: it is computed once by each router."""
    return Scenario(
        name="herd-prompt",
        fault="1,000 requests with the same prompt within half a second",
        seconds=0.5,
        load_share=0.0,
        plan=always(()),
        probe="send_same",
        reads_records=True,
        topology=Topology(limits=LimitsConfig(request_timeout_s=55.0, queue_wait_s=40.0)),
        checks=(
            *correct("P37"),
            check("broken", 0, "P37"),
            check("success", 0.999, "P37"),
            check("prefills_at_once", 1, "P37", needs=1000),
            check("waiters", 1.0, "P37"),
        ),
    )
