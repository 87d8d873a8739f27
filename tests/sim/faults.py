"""Fault plans: small values drawn from a seed, printed with a story, done one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

from sim.shared import DECODES, PREFILLS, ROUTERS
from sim.store import STORE

#: Faults begin and end within these seconds of the world.
FIRST_S, LAST_S = 2.0, 13.0

WORKERS = (*PREFILLS, *DECODES)

#: How many plans have readers that come back.
_STALE = 0.25

#: How many plans have a store that is split.
_SPLITS = 0.1

#: How many plans have operators who let another policy decide, and which ones they take.
_SWITCHES = 0.25
POLICIES = ("prfaas", "lookahead", "round_robin", "least_loaded")

#: How many plans have a planner that lets a worker do the other role for a while.
_ROLES = 0.25

#: Those that are at its second primary then.
SECOND_HALF = (*PREFILLS[1::2], *DECODES[1::2], *ROUTERS[1::2])

#: How often a worker that leaves is not heard.
_UNHEARD = 0.4

#: How often a trouble meets the plan's favourite of its kind.
_FAVOURED = 0.4


@dataclass(frozen=True, slots=True)
class Fault:
    """One trouble: when, what, whose, for how long, how much."""

    at_s: float
    kind: str
    target: str = ""
    other: str = ""
    for_s: float = 0.0
    amount: float = 0.0

    def __str__(self) -> str:
        ways = f"{self.target}{'>' + self.other if self.other else ''}"
        lasts = f" for {self.for_s:.2f} s" if self.for_s else ""
        much = f", {self.amount:.2f}" if self.amount else ""
        return f"{self.at_s:6.2f} s  {self.kind} {ways}{lasts}{much}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is wrong with one world."""

    faults: tuple[Fault, ...] = ()
    #: Clock of each process: seconds ahead, and seconds per second.
    clocks: tuple[tuple[str, float, float], ...] = ()
    #: Workers of a version that cannot resume.
    old: tuple[str, ...] = ()
    #: Parts of the clients that leave early, and that read slowly.
    leavers: float = 0.0
    slow_readers: float = 0.0
    #: Requests that end every worker they run on.
    poison: int = 0

    def __str__(self) -> str:
        lines = [str(fault) for fault in self.faults]
        lines += [
            f"clock of {name}: {ahead:+.0f} s, rate {rate:.3f}" for name, ahead, rate in self.clocks
        ]
        lines += [f"{name} cannot resume" for name in self.old]
        for what in ("leavers", "slow_readers", "poison"):
            if value := getattr(self, what):
                lines.append(f"{what}: {value:.2f}")
        return "\n".join(lines) or "no faults"

    @property
    def kinds(self) -> set[str]:
        """Kinds of faults in it."""
        found = {fault.kind for fault in self.faults}
        found |= {"clock"} if self.clocks else set()
        found |= {"version_skew"} if self.old else set()
        found |= {"client_leaves"} if self.leavers else set()
        found |= {"client_slow"} if self.slow_readers else set()
        return found | ({"poison"} if self.poison else set())

    def counts(self) -> dict[str, int]:
        """Faults by kind."""
        found: dict[str, int] = {}
        for fault in self.faults:
            found[fault.kind] = found.get(fault.kind, 0) + 1
        for kind in self.kinds - found.keys():
            found[kind] = 1
        return found


class Dice(Random):
    """A seeded source that has favourites: troubles that meet find more than those that do not."""

    def __init__(self, seed: str) -> None:
        super().__init__(seed)
        self.favourites = tuple(self.choice(group) for group in (PREFILLS, DECODES, ROUTERS))

    def pick(self, names: tuple[str, ...]) -> str:
        """One of them, often the favourite."""
        found = [name for name in self.favourites if name in names]
        return self.choice(found) if found and self.random() < _FAVOURED else self.choice(names)


def draw_plan(seed: int) -> Plan:
    """
    A plan of a few kinds of faults.

    Kinds are drawn first, so that a world has many faults of few kinds: troubles that come
    together often find more than troubles that come from everywhere.
    """
    random = Dice(f"{seed} plan")
    kinds = random.sample(sorted(_DRAWS), k=random.choice((1, 2, 2, 3, 3, 4, 5)))
    faults: list[Fault] = []
    for kind in kinds:
        for _ in range(random.choice((1, 1, 2, 3))):
            faults += _DRAWS[kind](random, random.uniform(FIRST_S, LAST_S - 2.0))
    plan = Plan(
        clocks=_clocks(random) if random.random() < 0.3 else (),
        old=tuple(random.sample(DECODES, k=1)) if random.random() < 0.15 else (),
        leavers=random.choice((0.0, 0.0, 0.1, 0.3)),
        slow_readers=random.choice((0.0, 0.0, 0.0, 0.15)),
        poison=random.choice((0, 0, 0, 0, 0, 0, 0, 1)),
    )
    if random.random() < _STALE:
        faults += _stale_reader(random, random.uniform(FIRST_S, LAST_S - 2.0))
    faults += _split(Dice(f"{seed} split"))
    faults += _switch(Dice(f"{seed} switch"))
    faults += _role(Dice(f"{seed} role"))
    return replace(plan, faults=tuple(sorted(faults, key=lambda fault: fault.at_s)))


def _clocks(dice: Dice) -> tuple[tuple[str, float, float], ...]:
    names = (*ROUTERS, *WORKERS, STORE)
    return tuple(
        (name, dice.choice((0.0, 3600.0)), dice.uniform(0.9, 1.1))
        for name in dice.sample(names, k=dice.randint(1, 6))
    )


def _some(dice: Dice, low_s: float = 0.3, high_s: float = 5.0) -> float:
    return float(dice.uniform(low_s, high_s))


def _kill(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "kill", dice.pick(WORKERS), for_s=_some(dice, 0.5, 4.0))]


def _kill_prefill(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "kill", dice.pick(PREFILLS), for_s=_some(dice, 0.05, 2.0))]


def _kill_decode(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "kill", dice.pick(DECODES), for_s=_some(dice, 0.05, 2.0))]


def _kill_router(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "kill", dice.pick(ROUTERS), for_s=_some(dice, 0.5, 2.0))]


def _pause(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "pause", dice.pick((*WORKERS, *ROUTERS)), for_s=_some(dice, 0.2, 8.0))]


def _hang(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "hang", dice.pick(WORKERS), for_s=_some(dice, 1.0, 8.0))]


def _drain(dice: Dice, at_s: float) -> list[Fault]:
    target = dice.pick(WORKERS)
    faults = [Fault(at_s, "drain", target, for_s=_some(dice, 0.2, 2.0))]
    if dice.random() < _UNHEARD:
        # It cannot tell anybody that it leaves.
        faults.append(Fault(at_s - 0.05, "cut_one_way", target, STORE, for_s=2.0))
    return faults


def _drain_router(dice: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "drain", dice.pick(ROUTERS), for_s=_some(dice, 0.2, 2.0))]


def _pair(dice: Dice) -> tuple[str, str]:
    one, other = dice.choice(
        ((ROUTERS, WORKERS), (DECODES, PREFILLS), (ROUTERS, (STORE,)), (WORKERS, (STORE,)))
    )
    pair = [dice.pick(one), dice.pick(other)]
    dice.shuffle(pair)
    return pair[0], pair[1]


def _cut(dice: Dice, at_s: float) -> list[Fault]:
    one, other = _pair(dice)
    return _both(at_s, one, other, _some(dice))


def _both(at_s: float, one: str, other: str, for_s: float) -> list[Fault]:
    return [Fault(at_s, "cut", one, other, for_s), Fault(at_s, "cut", other, one, for_s)]


def _cut_one_way(dice: Dice, at_s: float) -> list[Fault]:
    one, other = _pair(dice)
    return [Fault(at_s, "cut_one_way", one, other, _some(dice))]


def _swizzle(dice: Dice, at_s: float) -> list[Fault]:
    """Everything of one process is cut, one after the other, and comes back in another order."""
    target = dice.pick(WORKERS)
    others = [name for name in (*ROUTERS, *PREFILLS, *DECODES, STORE) if name != target]
    faults: list[Fault] = []
    for other in dice.sample(others, k=dice.randint(2, len(others))):
        begins_s, for_s = at_s + dice.uniform(0.0, 1.5), dice.uniform(0.5, 4.0)
        for one, two in ((target, other), (other, target)):
            faults.append(Fault(begins_s, "swizzle", one, two, for_s))
    return faults


def _delay(dice: Dice, at_s: float) -> list[Fault]:
    one, other = _pair(dice)
    return [
        Fault(at_s, "delay", *way, for_s=_some(dice), amount=dice.choice((0.05, 0.5, 2.5)))
        for way in ((one, other), (other, one))
    ]


_Draw: TypeAlias = Callable[[Dice, float], list[Fault]]


def _part(kind: str, targets: tuple[str, ...], parts: tuple[float, ...]) -> _Draw:
    def draw(dice: Dice, at_s: float) -> list[Fault]:
        return [
            Fault(
                at_s,
                kind,
                dice.pick(targets),
                for_s=_some(dice, 1.0, 6.0),
                amount=dice.choice(parts),
            )
        ]

    return draw


def _store_once(kind: str) -> _Draw:
    def draw(dice: Dice, at_s: float) -> list[Fault]:
        return [Fault(at_s, kind, STORE, for_s=_some(dice, 0.3, 4.0))]

    return draw


def _stale_reader(dice: Dice, at_s: float) -> list[Fault]:
    """A decode worker comes back to what it was told long ago, several times."""
    reader, owner = dice.pick(DECODES), dice.pick(PREFILLS)
    times_s = sorted(dice.uniform(at_s, LAST_S) for _ in range(30))
    return [
        Fault(when_s, "stale_reader", reader, owner, amount=dice.random()) for when_s in times_s
    ]


def _flush(_: Dice, at_s: float) -> list[Fault]:
    return [Fault(at_s, "store_flush", STORE)]


def _failover(dice: Dice, at_s: float) -> list[Fault]:
    """The state goes back by `amount` seconds."""
    return [Fault(at_s, "store_failover", STORE, amount=dice.uniform(0.02, 1.5))]


def _split(dice: Dice) -> list[Fault]:
    """
    Two primaries, half of all processes at each, for `for_s`; in some plans, beside their kinds.

    Of dice of its own: the other plans are what they were without it.
    """
    if dice.random() >= _SPLITS:
        return []
    at_s = dice.uniform(FIRST_S, LAST_S - 4.0)
    return [Fault(at_s, "store_split", STORE, for_s=_some(dice, 1.0, 8.0))]


def _switch(dice: Dice) -> list[Fault]:
    """Another policy decides from now on, and one more answers in its shadow; of dice of its own."""
    if dice.random() >= _SWITCHES:
        return []
    return [
        Fault(dice.uniform(FIRST_S, LAST_S), "policy_switch", *dice.sample(POLICIES, k=2))
        for _ in range(dice.choice((1, 1, 2)))
    ]


def _role(dice: Dice) -> list[Fault]:
    """A worker of each role may do the other one, and its own again; of dice of its own."""
    if dice.random() >= _ROLES:
        return []
    return [
        Fault(dice.uniform(FIRST_S, LAST_S - 4.0), "role", dice.choice(names), for_s=_some(dice))
        for names in dice.choice(((PREFILLS,), (DECODES,), (PREFILLS, DECODES)))
    ]


_DRAWS: dict[str, _Draw] = {
    "kill": _kill,
    "kill_prefill": _kill_prefill,
    "kill_decode": _kill_decode,
    "kill_router": _kill_router,
    "pause": _pause,
    "hang": _hang,
    "drain": _drain,
    "drain_router": _drain_router,
    "cut": _cut,
    "cut_one_way": _cut_one_way,
    "swizzle": _swizzle,
    "delay": _delay,
    "duplicate": _part("duplicate", (*WORKERS, STORE), (0.1, 0.5)),
    "corrupt": _part("corrupt", PREFILLS, (0.02, 0.1, 0.5)),
    "store_error": _part("store_error", (STORE,), (0.05, 0.5)),
    "store_lost_answer": _part("store_lost_answer", (STORE,), (0.05, 0.3)),
    "store_lost_call": _part("store_lost_call", (STORE,), (0.05, 0.3)),
    "store_slow": _part("store_slow", (STORE,), (0.03, 0.3)),
    "store_kill": _store_once("store_kill"),
    "store_pause": _store_once("store_pause"),
    "store_flush": _flush,
    "store_failover": _failover,
}
