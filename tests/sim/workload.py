"""What clients ask, drawn from a seed: shared documents, several tenants, all lengths."""

from __future__ import annotations

from random import Random

from sim.clients import Asked
from sim.engine import POISON
from sim.faults import Plan
from sim.shared import REQUEST_S, ROUTERS

from controlplane.domain.byte_tokenizer import encode_text

SCOPES = ("scope-a", "scope-b", "scope-c")

#: When the first request comes, and the last of those that meet faults.
FIRST_S, LAST_S = 1.6, 13.5

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def draw_requests(random: Random, plan: Plan) -> list[Asked]:
    """The requests of the time of faults."""
    documents = [_letters(random, random.randint(64, 360)) for _ in range(4)]
    count = random.randint(12, 32)
    asked: list[Asked] = []
    for number in range(count):
        asked.append(_draw(random, plan, documents, f"q{number}", random.uniform(FIRST_S, LAST_S)))
        if random.random() < 0.1:
            asked.append(_retry(random, asked[-1]))
    if random.random() < 0.3:
        asked += _herd(random, plan, documents)
    for number in range(plan.poison):
        asked += _poison(random, f"poison{number}")
    return sorted(asked, key=lambda one: (one.at_s, one.request_id))


def draw_calm(random: Random, count: int, at_s: float) -> list[Asked]:
    """Requests of the time after all faults, from clients that stay."""
    documents = [_letters(random, random.randint(64, 360)) for _ in range(2)]
    return [
        _draw(random, Plan(), documents, f"calm{number}", at_s + 0.15 * number)
        for number in range(count)
    ]


def _draw(random: Random, plan: Plan, documents: list[str], request_id: str, at_s: float) -> Asked:
    text = random.choice(documents)
    text = text[: random.randint(40, len(text))] if random.random() < 0.7 else text
    text += _letters(random, random.randint(1, 60))
    asked = Asked(
        request_id=request_id,
        at_s=at_s,
        router=random.choice(ROUTERS),
        scope=random.choice(SCOPES),
        tokens=encode_text(text),
        output_tokens_max=random.choice((1, 2, 8, 16, 32, 64)),
        stop=(_letters(random, 2),) if random.random() < 0.25 else (),
        is_stream=random.random() < 0.85,
        deadline_s=random.choice((REQUEST_S, REQUEST_S, REQUEST_S, 20.0, 3.0, 0.5)),
    )
    if random.random() < plan.leavers:
        asked.leaves_after_s = random.choice((0.01, 0.05, 0.3, 1.0)) * random.random()
    if random.random() < plan.slow_readers:
        asked.reads_every_s = random.choice((0.02, 0.2))
    return asked


def _herd(random: Random, plan: Plan, documents: list[str]) -> list[Asked]:
    """Many with one new prefix at once."""
    at_s, scope = random.uniform(FIRST_S, LAST_S), random.choice(SCOPES)
    document = _letters(random, 300)
    found = []
    for number in range(random.randint(3, 8)):
        one = _draw(random, plan, documents, f"herd{number}", at_s + 0.01 * random.random())
        one.scope = scope
        one.tokens = encode_text(document + _letters(random, random.randint(1, 20)))
        found.append(one)
    return found


def _poison(random: Random, request_id: str) -> list[Asked]:
    """A request that kills, and its client's retries."""
    tokens = encode_text(POISON + _letters(random, random.randint(40, 200)))
    at_s = random.uniform(FIRST_S, LAST_S - 8.0)
    return [
        Asked(
            request_id=f"{request_id}-{retry}",
            at_s=at_s + 2.0 * retry,
            router=random.choice(ROUTERS),
            scope=SCOPES[0],
            tokens=tokens,
            output_tokens_max=4,
        )
        for retry in range(4)
    ]


def _retry(random: Random, first: Asked) -> Asked:
    """The same once more, with one idempotency key for both."""
    first.idempotency_key = f"key-{first.request_id}"
    return Asked(
        request_id=f"{first.request_id}r",
        at_s=first.at_s + random.choice((0.001, 0.1, 1.0)),
        router=random.choice(ROUTERS),
        scope=first.scope,
        tokens=first.tokens,
        output_tokens_max=first.output_tokens_max,
        stop=first.stop,
        idempotency_key=first.idempotency_key,
    )


def _letters(random: Random, count: int) -> str:
    return "".join(random.choices(_LETTERS, k=count))
