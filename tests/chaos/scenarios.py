"""All scenarios, each in a short form for every test run and a long one for the figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final

from chaos.fleet_scenarios import (
    mixed_versions,
    prefill_site_lost,
    reconnect_herd,
    same_prompt_herd,
    split_brain,
)
from chaos.link_scenarios import link_slow
from chaos.plans import always, check, correct, every, share_of_times, sure, within
from chaos.plant import Topology
from chaos.scenario import Event, Form, Scenario
from chaos.versions import has_previous
from controlplane.config import KvConfig, LimitsConfig

_WORKERS: Final = (
    *(f"east/prefill-{n}" for n in range(2)),
    *(f"west/prefill-{n}" for n in range(2)),
    *(f"west/decode-{n}" for n in range(4)),
)
_ROUTERS: Final = ("router-0", "router-1")

#: Part of the capacity in ordinary requests: long answers cost several times as much each.
_LONG_ANSWERS_SHARE: Final = 0.12

#: An engine counts as hanging after 3 s without a token, so that this is seen in a short run.
_CHAOS_ENGINE: Final = Topology(
    has_chaos_engine=True, limits=LimitsConfig(request_timeout_s=55.0, token_idle_timeout_s=3.0)
)

#: One fleet for all short forms: what expires does so within seconds, and is waited for.
_SHORT: Final = replace(
    _CHAOS_ENGINE,
    limits=_CHAOS_ENGINE.limits.model_copy(update={"reservation_ttl_s": 6.0}),
    kv=KvConfig(lease_s=6.0, renew_interval_s=2.0),
    has_second_redis=True,
)
#: What is in the short form in another place, has a sibling that is broken much the same way, or has
#: tests of its own on a real server or a real sender: the short form takes three minutes at most.
_LONG_ONLY: Final = {
    *("link-cut-up", "link-cut-down", "link-hole", "redis-kill"),
    *("poison", "garbage", "strangers", "clocks"),
    *("herd-store", "herd-prompt", "link-slow"),
    *("link-bad", "redis-slow"),
}


# --- The scenarios ----------------------------------------------------------------------------


def _random_kill(at_s: float, random: Random) -> Event:
    """SIGKILL, SIGSTOP for 1 to 3 s, or SIGTERM of a worker, now and then of a router or Redis."""
    target = random.choices(
        (random.choice(_WORKERS), random.choice(_ROUTERS), "redis"), (0.75, 0.17, 0.08)
    )[0]
    do = random.choices(("kill", "stop", "term"), (0.6, 0.25, 0.15))[0]
    for_s = random.uniform(1.0, 3.0) if do == "stop" else 0.0
    return Event(at_s=at_s, do=do, target=target, for_s=for_s)


def main_scenario(form: Form) -> Scenario:
    """(a) Anything may die at any moment."""
    return Scenario(
        name="main",
        fault="a random process killed, stopped or terminated every "
        + ("5 s" if form == "long" else "2.5 s"),
        requests=10_000 if form == "long" else 0,
        seconds=10.5,
        plan=every(5.0 if form == "long" else 2.5, _random_kill),
        counts_leaks=True,
        checks=(
            *correct("P01"),
            check("broken", 0, "P01"),
            check("leaks", 0, "P25"),
            check("success", 0.99, "P06"),
            check("retries", 0.2, "P36"),
        ),
    )


def redis_down(form: Form, do: str) -> Scenario:
    """(b) Redis is killed, or frozen, for a minute."""
    for_s = 60.0 if form == "long" else 5.0
    return Scenario(
        name=f"redis-{do}",
        fault=f"Redis {'killed' if do == 'kill' else 'frozen'} for {for_s:g} s",
        seconds=for_s + 3.0,
        plan=always(
            (
                Event(at_s=1.0, do=do, target="redis", for_s=for_s),
                # From when the breaker is open to when Redis is back.
                Event(at_s=2.5, do="stats"),
                Event(at_s=for_s + 0.8, do="stats"),
            )
        ),
        reads_records=True,
        checks=(
            *correct("P13"),
            check("broken", 0, "P13"),
            check("success", 0.999, "P13"),
            check("decision_time", within(form, 0.060), "P13", share=share_of_times(form)),
            check("store_calls", 2.0, "P13"),
        ),
    )


def flushes(form: Form) -> Scenario:
    """(c) FLUSHALL again and again."""
    pause_s = 30.0 if form == "long" else 3.0
    return Scenario(
        name="flush",
        fault=f"FLUSHALL every {pause_s:g} s",
        seconds=300.0 if form == "long" else 7.0,
        plan=every(pause_s, lambda at_s, _: Event(at_s=at_s, do="flush")),
        checks=(
            *correct("P16"),
            check("broken", 0, "P16"),
            check("success", 0.999, "P16"),
            check("rebuilt", within(form, 2.0), "P16"),
        ),
    )


def slow_redis(form: Form) -> Scenario:
    """(d) Redis answers later than anybody may wait, or freezes for moments."""
    for_s = 30.0 if form == "long" else 4.0
    return Scenario(
        name="redis-slow",
        fault="Redis freezes for a second at a time, then answers after 0 to 500 ms",
        seconds=for_s + 2.0,
        plan=always(
            (
                *(
                    Event(at_s=0.5 + 2 * number, do="stop", target="redis", for_s=1.0)
                    for number in range(int(for_s / 4))
                ),
                Event(
                    at_s=for_s / 2,
                    do="fault",
                    target="redis-*",
                    for_s=for_s / 2,
                    options={"latency_s": 0.0, "jitter_s": 0.5, "direction": "down"},
                ),
            )
        ),
        reads_records=True,
        checks=(
            *correct("P14"),
            check("success", 0.999, "P14"),
            check("decision_time", within(form, 0.060), "P14", share=share_of_times(form)),
        ),
    )


def prefill_killed(form: Form) -> Scenario:
    """(e) A prefill worker dies."""
    return Scenario(
        name="prefill-kill",
        fault="SIGKILL of a prefill worker every " + ("5 s" if form == "long" else "1.5 s"),
        seconds=300.0 if form == "long" else 7.0,
        plan=every(
            5.0 if form == "long" else 1.5,
            lambda at_s, random: Event(at_s=at_s, do="kill", target=random.choice(_WORKERS[:4])),
        ),
        checks=(
            *correct("P03"),
            check("broken", 0, "P03"),
            check("success", 0.999, "P03"),
            check("added_ttft", within(form, 1.5), "P03", needs=sure(form), role="prefill"),
        ),
    )


def decode_killed(form: Form) -> Scenario:
    """(f) A decode worker dies in the middle of its streams."""
    return Scenario(
        name="decode-kill",
        fault="SIGKILL of a decode worker every " + ("5 s" if form == "long" else "1.5 s"),
        seconds=300.0 if form == "long" else 7.0,
        has_long_answers=True,
        load_share=_LONG_ANSWERS_SHARE,
        plan=every(
            5.0 if form == "long" else 1.5,
            lambda at_s, random: Event(at_s=at_s, do="kill", target=random.choice(_WORKERS[4:])),
        ),
        checks=(
            *correct("P06"),
            check("broken", 0, "P06"),
            check("success", 0.999, "P06"),
            check("stall", within(form, 5.0), "P06", needs=sure(form), role="decode"),
        ),
    )


def clients_leave(form: Form) -> Scenario:
    """(g) Clients hang up at any stage."""
    return Scenario(
        name="leave",
        fault="clients hang up while queued, in prefill, in transfer, while decoding",
        seconds=120.0 if form == "long" else 4.0,
        load_share=0.0,
        plan=always(()),
        probe="leave_at_any_stage",
        checks=(check("abort_time", within(form, 1.0), "P35"), check("crashes", 0, "P35")),
    )


def rolling_restart(form: Form) -> Scenario:
    """(h) Routers are restarted one by one."""
    rounds = 20 if form == "long" else 1
    return Scenario(
        name="rolling",
        fault=f"SIGTERM of each router in turn, {rounds} rounds",
        seconds=6.0 * rounds + 1.0,
        plan=always((Event(at_s=1.0, do="rolling", options={"rounds": rounds}),)),
        checks=(
            *correct("P02"),
            check("broken", 0, "P02"),
            check("success", 1.0, "P02"),
            check("exit_time", 35.0, "P02"),
        ),
    )


_LINKS: Final[tuple[tuple[str, str, Mapping[str, Any]], ...]] = (
    ("cut", "both ways", {"is_stalled": True}),
    ("cut-up", "one way, towards the far datacenter", {"is_stalled": True, "direction": "up"}),
    ("cut-down", "one way, from the far datacenter", {"is_stalled": True, "direction": "down"}),
    ("hole", "both ways, with what was on its way", {"is_black_hole": True}),
)


def link_cut(form: Form, name: str, how: str, options: Mapping[str, Any]) -> Scenario:
    """(i) Nothing passes between the datacenters."""
    for_s = 20.0 if form == "long" else 4.0
    return Scenario(
        name=f"link-{name}",
        fault=f"link cut {how}, for {for_s:g} s",
        seconds=for_s + 3.0,
        plan=always(
            (Event(at_s=1.0, do="fault", target="*-east-*", for_s=for_s, options=options),)
        ),
        reads_records=True,
        checks=(
            *correct("P26"),
            check("broken", 0, "P26"),
            check("offloads_while_cut", 0, "P26"),
            check("success", 0.99, "P26"),
        ),
    )


def link_bad(form: Form) -> Scenario:
    """(i) The link is slow, then spoils bytes, cuts them small, and repeats them."""
    for_s = 30.0 if form == "long" else 2.0
    slow = {"bytes_per_s": 2.5e6, "latency_s": 0.02}
    corrupt = {"corrupt_ratio": 0.02}
    sliced = {"slice_bytes": 700, "slice_pause_s": 0.0002, "duplicate_ratio": 0.01}
    return Scenario(
        name="link-bad",
        fault="KV link at 10 %, then flipping bits, then slicing and repeating",
        seconds=3 * for_s + 1.5,
        plan=always(
            tuple(
                Event(
                    at_s=0.5 + number * for_s,
                    do="fault",
                    target="kv-east-*",
                    for_s=for_s * 0.9,
                    options={**options, "direction": "down"},
                )
                for number, options in enumerate((slow, corrupt, sliced))
            )
        ),
        checks=(
            *correct("P22"),
            check("broken", 0, "P22"),
            check("success", 0.99, "P22"),
        ),
    )


def garbage(form: Form) -> Scenario:
    """(l) Keys are overwritten with what nobody of the fleet wrote."""
    pause_s = 5.0 if form == "long" else 1.5
    return Scenario(
        name="garbage",
        fault=f"garbage in half of all Redis keys every {pause_s:g} s",
        seconds=60.0 if form == "long" else 6.0,
        plan=every(pause_s, lambda at_s, _: Event(at_s=at_s, do="garbage")),
        checks=(*correct("P19"), check("broken", 0, "P19"), check("success", 0.999, "P19")),
    )


def poison(form: Form) -> Scenario:
    """(k) A request ends each process that runs it."""
    return Scenario(
        name="poison",
        fault="requests that end the worker that prefills, and the one that decodes them",
        seconds=60.0 if form == "long" else 9.0,
        load_share=0.4,
        plan=always(()),
        probe="send_poison",
        topology=_CHAOS_ENGINE,
        checks=(
            *correct("P11"),
            check("broken", 0, "P11"),
            check("success", 0.999, "P11"),
            check("poison_deaths", 2, "P11"),
            check("poison_refused", 1.0, "P11"),
        ),
    )


def hang(form: Form) -> Scenario:
    """(k) An engine stops for ever, and its process lives on."""
    limit_s = _CHAOS_ENGINE.limits.token_idle_timeout_s
    return Scenario(
        name="hang",
        fault="an engine that never comes back, in a process that lives",
        seconds=60.0 if form == "long" else 8.0,
        has_long_answers=True,
        load_share=_LONG_ANSWERS_SHARE,
        plan=always(()),
        probe="send_hanging",
        topology=_CHAOS_ENGINE,
        checks=(
            *correct("P12"),
            check("broken", 0, "P12"),
            check("success", 0.99 if form == "long" else 0.9, "P12"),
            check("longest_silence", within(form, 2 * limit_s), "P12"),
        ),
    )


def strangers(form: Form) -> Scenario:
    """(l) Workers of another model's weights come under the same name."""
    for_s = 30.0 if form == "long" else 4.0
    return Scenario(
        name="strangers",
        fault="workers with another fingerprint in the same fleet",
        seconds=for_s + 5.0,
        plan=always((Event(at_s=0.5, do="strangers", for_s=for_s),)),
        checks=(
            *correct("P45"),
            check("broken", 0, "P45"),
            check("success", 0.999, "P45"),
            check("served_by_strangers", 0, "P45"),
        ),
    )


def wrong_clocks(form: Form) -> Scenario:
    """(l) Clocks that are an hour off, ahead and behind."""
    for_s = 30.0 if form == "long" else 4.0
    skewed = (("router-0", 3600), ("east/prefill-0", -3600), ("west/decode-0", 3600))
    return Scenario(
        name="clocks",
        fault="wall clocks of a router and two workers an hour ahead or behind",
        seconds=for_s + 4.0,
        plan=always(
            tuple(
                Event(at_s=0.5, do="skew", target=name, for_s=for_s, options={"offset_s": offset})
                for name, offset in skewed
            )
        ),
        checks=(
            *correct("P32"),
            check("broken", 0, "P32"),
            check("success", 0.99, "P32"),
        ),
    )


def failover(form: Form) -> Scenario:
    """(j) Redis fails over, and what was written last is lost."""
    return Scenario(
        name="failover",
        fault="Redis master killed with what its replica had not heard of; sentinels promote it",
        seconds=30.0 if form == "long" else 8.0,
        plan=always((Event(at_s=1.0, do="failover", for_s=1.0),)),
        topology=Topology(has_sentinels=True),
        checks=(
            *correct("P15"),
            check("broken", 0, "P15"),
            check("success", 0.999, "P15"),
            check("promoted", within(form, 10.0), "P15"),
        ),
    )


def bad_input() -> Scenario:
    """(l) All of it at once: for the short form."""
    parts = [make("short") for make in (garbage, strangers, wrong_clocks)]

    def plan(seconds: float, random: Random) -> tuple[Event, ...]:
        return tuple(event for part in parts for event in part.plan(seconds, random))

    return Scenario(
        name="bad-input",
        fault="; ".join(part.fault for part in parts),
        seconds=8.0,
        plan=plan,
        checks=(
            *correct("P19"),
            check("broken", 0, "P19"),
            check("success", 0.99, "P19"),
            check("served_by_strangers", 0, "P45"),
        ),
    )


def short_scenarios() -> list[Scenario]:
    """Those of every test run: one fleet for all of them but for those with sentinels."""
    # Poison first: a request is told from bystanders by its part of all deaths of late.
    scenarios = [poison("short"), bad_input()]
    scenarios += [one for one in all_scenarios("short") if one.name not in _LONG_ONLY]
    return [
        scenario if scenario.topology.has_sentinels else replace(scenario, topology=_SHORT)
        for scenario in scenarios
    ]


def all_scenarios(form: Form) -> list[Scenario]:
    """In the order they are run."""
    return [
        redis_down(form, "kill"),
        redis_down(form, "stop"),
        flushes(form),
        slow_redis(form),
        prefill_killed(form),
        decode_killed(form),
        clients_leave(form),
        rolling_restart(form),
        *(link_cut(form, *one) for one in _LINKS),
        link_bad(form),
        link_slow(form),
        garbage(form),
        strangers(form),
        wrong_clocks(form),
        main_scenario(form),
        poison(form),
        hang(form),
        failover(form),
        prefill_site_lost(form),
        split_brain(form),
        *((mixed_versions(form),) if has_previous() else ()),
        reconnect_herd(),
        same_prompt_herd(),
    ]
