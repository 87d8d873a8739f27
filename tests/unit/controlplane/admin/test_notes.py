from __future__ import annotations

from dataclasses import replace

from admin_world import a_record, an_attempt
from builders import a_link, a_view, a_worker

from controlplane.admin.notes import notes
from controlplane.domain.decision import Decision
from controlplane.router.records import Attempt
from controlplane.router.shadows import ShadowDecision


def with_shadow(shadow: ShadowDecision) -> Attempt:
    return replace(an_attempt(), shadows=(shadow,))


def a_decision() -> Decision:
    return an_attempt().decision


def test_a_decision_by_predicted_ttft_alone_needs_no_notes() -> None:
    assert notes(a_record()) == ()


def test_what_a_policy_compared_is_listed_term_by_term_cheapest_first() -> None:
    attempt = an_attempt(policy="lookahead")

    said = [note.text for note in notes(a_record(attempt)) if note.topic == "compared"]

    assert said
    chosen = attempt.decision.placement
    assert chosen is not None
    assert said[0].startswith(f"{chosen.prefill_worker} ")
    assert " = prefill " in said[0] or " + prefill " in said[0]
    assert said[0].endswith("; chosen")
    assert not any(text.endswith("; chosen") for text in said[1:])


def test_money_is_told_in_its_own_unit_beside_what_it_weighs() -> None:
    view = a_view(
        a_worker("east/p1", prefill_s_per_token=0.001, kv_bytes_per_token=100_000),
        a_worker("west/d1", role="decode"),
        links=(a_link(egress_price_per_gb=2.0),),
    )
    attempt = an_attempt(view, policy="lookahead")

    (note,) = notes(a_record(attempt))

    assert "egress " in note.text
    assert " for 0.0" in note.text


def test_a_copy_says_how_much_comes_from_where() -> None:
    attempt = an_attempt()
    placement, prediction = attempt.decision.placement, attempt.decision.prediction
    assert placement is not None
    assert prediction is not None
    decision = replace(
        attempt.decision,
        placement=replace(placement, copy_from_worker="west/d1", copy_tokens=4096),
        prediction=replace(prediction, copy_bytes=2_000_000, copy_s=0.25),
    )

    (note,) = notes(a_record(replace(attempt, decision=decision)))

    assert note.text.startswith("4,096 cached tokens from west/d1, ")
    assert note.topic == "copied"


def test_a_shadow_says_what_it_would_have_done() -> None:
    placement = a_decision().placement
    same = ShadowDecision(
        policy="a", parameters={}, placement=placement, is_same=True, reason="local_only"
    )
    other = replace(same, is_same=False, explanation="because")
    nowhere = replace(other, placement=None, explanation="no prefill worker is known")
    fault = ShadowDecision(policy="a", parameters={}, fault="it raised KeyError: 1")

    said = [notes(a_record(with_shadow(one)))[0].text for one in (same, other, nowhere, fault)]

    assert said[0] == "a would have done the same, for local only"
    assert said[1].startswith("a would have prefilled at ")
    assert said[1].endswith(": because")
    assert said[2] == "a would have placed it nowhere: no prefill worker is known"
    assert said[3] == "a gave no answer: it raised KeyError: 1"
