"""Proof of transfer: who computed what, by the engine's own count."""

from __future__ import annotations

from workers.engines.remote.proof import Ledger
from workers.engines.remote.snapshot import PromptSources, Snapshot


def counted(
    *, computed: int = 0, cached: int = 0, external: int = 0, moved: int = 0, moving_s: float = 0.0
) -> Snapshot:
    return Snapshot(
        sources=PromptSources(computed=computed, cached=cached, external=external),
        moved_bytes_total=moved,
        moving_s_total=moving_s,
        cache={},
    )


def a_ledger() -> Ledger:
    return Ledger(settled=counted())


def test_a_prompt_from_outside_is_proven_by_the_count() -> None:
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    ledger.look(ledger.open_claims(), counted(external=1000, moved=2_097_152, moving_s=0.03))

    assert (claim.evidence, claim.computed_tokens, claim.is_mismatch) == ("counted", 0, False)
    assert (claim.moved_bytes, claim.moving_s) == (2_097_152, 0.03)
    assert not ledger.waiting


def test_a_prompt_that_was_computed_again_is_a_mismatch() -> None:
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    ledger.look(ledger.open_claims(), counted(computed=1000))

    assert (claim.evidence, claim.computed_tokens, claim.is_mismatch) == ("counted", 1000, True)


def test_what_the_decode_side_had_in_its_own_cache_is_none() -> None:
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    ledger.look(ledger.open_claims(), counted(cached=896, external=104))

    assert not claim.is_mismatch


def test_counts_that_come_later_than_the_first_token_are_waited_for() -> None:
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    ledger.look(ledger.open_claims(), counted())
    assert not claim.is_settled
    ledger.look(ledger.open_claims(), counted(external=1000))

    assert claim.evidence == "counted"


def test_several_requests_without_any_computing_are_all_proven_by_one_look() -> None:
    ledger = a_ledger()
    claims = [ledger.claim(1000, tail_tokens=128), ledger.claim(3000, tail_tokens=128)]

    ledger.look(ledger.open_claims(), counted(external=4000, moved=8000))

    assert [claim.evidence for claim in claims] == ["counted", "counted"]
    # By what came from outside: 872 and 2,872 tokens.
    assert [claim.moved_bytes for claim in claims] == [1863, 6137]


def test_computing_among_several_requests_is_divided_and_says_so() -> None:
    ledger = a_ledger()
    claims = [ledger.claim(1000, tail_tokens=128), ledger.claim(3000, tail_tokens=128)]

    ledger.look(ledger.open_claims(), counted(external=3000, computed=1000))

    assert [claim.evidence for claim in claims] == ["shared", "shared"]
    assert [claim.computed_tokens for claim in claims] == [250, 750]


def test_counts_that_never_agree_are_divided_after_a_few_looks() -> None:
    """Others may use the same server, and requests may be counted that were aborted."""
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    for _ in range(4):
        ledger.look(ledger.open_claims(), counted(external=1000, cached=77))

    assert (claim.evidence, claim.computed_tokens) == ("shared", 0)


def test_what_others_let_the_engine_compute_meanwhile_is_no_mismatch() -> None:
    """One server may prefill for some and decode for others."""
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    for _ in range(4):
        ledger.look(ledger.open_claims(), counted(external=1000, computed=5000))

    assert (claim.evidence, claim.computed_tokens, claim.is_mismatch) == ("shared", 0, False)


def test_a_prompt_that_the_server_has_prefilled_itself_proves_nothing() -> None:
    ledger = a_ledger()
    for _ in range(8):
        before = ledger.settled.sources if ledger.settled else None
        computed = 0 if before is None else before.computed
        claim = ledger.claim(1000, tail_tokens=1000)
        ledger.look(ledger.open_claims(), counted(computed=computed + 1000, moved=77))

    assert not claim.is_mismatch
    assert claim.moved_bytes == 0
    assert not ledger.is_unproven


def test_an_engine_that_does_not_count_proves_nothing_and_is_not_blamed() -> None:
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    ledger.look(ledger.open_claims(), Snapshot(cache={}))

    assert (claim.evidence, claim.is_mismatch) == ("none", False)


def test_an_engine_that_began_anew_settles_nothing_of_its_old_life() -> None:
    ledger = a_ledger()
    claim = ledger.claim(1000, tail_tokens=128)

    ledger.restart(counted(external=1000))

    assert claim.is_settled
    assert claim.evidence == "none"
    later = ledger.claim(10, tail_tokens=128)
    ledger.look(ledger.open_claims(), counted(external=1010))
    assert later.evidence == "counted"


def test_one_mismatch_makes_no_engine_unwell_and_half_of_them_do() -> None:
    ledger = a_ledger()
    external = computed = 0
    seen = []
    for number in range(8):
        ledger.claim(1000, tail_tokens=128)
        external, computed = external + 1000 * (number % 2), computed + 1000 * (1 - number % 2)
        ledger.look(ledger.open_claims(), counted(external=external, computed=computed))
        seen.append(ledger.is_unproven)

    assert seen == [False] * 5 + [True] * 3
