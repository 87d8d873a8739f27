from __future__ import annotations

from dataclasses import replace

import pytest
from admin_world import a_failed_record, a_record, a_report, a_timeline, an_attempt
from builders import a_view, a_worker

from controlplane.admin.explain import CandidateRow, candidate_rows, omitted_words, sentence
from controlplane.router.records import DecisionRecord
from controlplane.wire import TransferReport


def rows(record: DecisionRecord) -> dict[str, CandidateRow]:
    return {row.worker_id: row for row in candidate_rows(record)}


# --- The sentence -----------------------------------------------------------------------------


def test_an_offloaded_request_says_where_why_and_what_crossed() -> None:
    record = a_record(an_attempt(input_tokens=1504))

    assert sentence(record) == (
        "Prefilled in east by east/p1 and decoded in west by west/d1: 1,503 of 1,503 prefill "
        "tokens are not cached in west, above the threshold of 64. Predicted first token in "
        "1.58 s, it took 0.23 s; 150 kB crossed east>west."
    )


@pytest.mark.parametrize(
    ("transfer", "computed", "said"),
    [
        ({"evidence": "counted"}, 1, "crossed east>west, as the decode engine's own count says."),
        (
            {"evidence": "counted", "is_mismatch": True},
            1504,
            "crossed east>west, but the decode engine computed 1,504 prompt tokens itself.",
        ),
        ({"evidence": "shared"}, 1, "crossed east>west."),
    ],
    ids=["proven", "computed again", "not told apart"],
)
def test_what_an_engine_counted_of_its_own_transfer_is_said(
    transfer: dict[str, object], computed: int, said: str
) -> None:
    report = a_report(
        transfer=TransferReport.model_validate({"bytes": 150_000, **transfer}),
        prompt_tokens_computed=computed,
    )

    assert sentence(a_record(report=report)).endswith(said)


def test_a_local_request_says_that_nothing_left_the_datacenter() -> None:
    record = a_record(an_attempt(input_tokens=51))

    assert sentence(record) == (
        "Prefilled by west/p1 and decoded by west/d1, both in west: 50 of 50 prefill tokens are "
        "not cached in west, within the threshold of 64. Predicted first token in 60 ms, it took "
        "0.23 s; 150 kB moved inside west."
    )


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("local_only", "both in west: prefill always stays in west."),
        ("round_robin", "decoded in west by west/d1: turn 1 of 2 prefill workers."),
    ],
)
def test_the_reason_is_the_one_the_policy_gave(policy: str, why: str) -> None:
    assert why in sentence(a_record(an_attempt(policy=policy)))


def test_a_first_attempt_that_failed_is_told_with_its_worker() -> None:
    record = a_record(an_attempt(ended_by="PrefillWorkerLost"), an_attempt(excluded=("east/p1",)))

    assert "It needed 2 attempts: east/p1 was lost before it accepted the prefill." in sentence(
        record
    )


@pytest.mark.parametrize(
    ("ended_by", "said"),
    [
        ("ReservationRefused", "the reservation at west/d1 was refused"),
        ("PrefillRefused", "west/d1 refused the prefill"),
        ("PrefillTimedOut", "west/d1 did not accept the prefill in time"),
        ("LinkDown", "the connection to the KV of west/d1 broke"),
        ("LinkStalled", "the KV of west/d1 came to a halt"),
        ("KvChunkCorrupt", "the KV of west/d1 arrived corrupt"),
        ("LeaseExpired", "west/d1 no longer had the KV"),
        ("SegmentFailed", "the prefill at west/d1 failed"),
        ("DecodeRefused", "west/d1 refused to decode"),
        ("DecodeWorkerLost", "west/d1 was lost while it decoded"),
        ("DecodeTimedOut", "west/d1 fell silent while it decoded"),
        ("EngineStalled", "the engine of west/d1 hung"),
        ("DecodeLeft", "west/d1 left and handed its output over"),
        ("SomethingNew", "west/d1 ended it with SomethingNew"),
    ],
)
def test_the_worker_that_failed_is_the_one_left_out_next_time(ended_by: str, said: str) -> None:
    view = a_view(a_worker("west/p1"), a_worker("west/d1"), a_worker("west/d2"))
    record = a_record(an_attempt(view, ended_by=ended_by), an_attempt(view, excluded=("west/d1",)))

    assert f"It needed 2 attempts: {said}." in sentence(record)


def test_a_migration_says_how_much_of_the_output_was_there() -> None:
    record = a_record(
        an_attempt(ended_by="DecodeWorkerLost"),
        an_attempt(excluded=("west/d1",), resumed_tokens=1234),
    )

    assert (
        "It needed 2 attempts: west/d1 was lost while it decoded, and 1,234 tokens of output were "
        "taken along."
    ) in sentence(record)


def test_a_failed_worker_is_known_without_the_next_attempts_list() -> None:
    record = a_record(an_attempt(ended_by="DecodeWorkerLost"), an_attempt())

    assert "west/d1 was lost while it decoded" in sentence(record)


def test_failures_are_told_in_their_order() -> None:
    record = a_failed_record(
        an_attempt(ended_by="PrefillWorkerLost"),
        an_attempt(excluded=("east/p1",), ended_by="PrefillRefused"),
        an_attempt(excluded=("east/p1", "west/p1"), ended_by="NoPlacement"),
        code="no_candidate",
        detail="no prefill worker can take it (2 failed_before)",
    )

    assert sentence(record) == (
        "It failed with no_candidate after 0.70 s and 3 attempts, before its first token: no "
        "prefill worker can take it (2 failed_before). Before that, east/p1 was lost before it "
        "accepted the prefill, then west/p1 refused the prefill."
    )


def test_a_failed_request_says_where_it_was_placed_and_what_failed() -> None:
    assert sentence(a_failed_record()) == (
        "Placed for prefill in east by east/p1 and for decode in west by west/d1: 100 of 100 "
        "prefill tokens are not cached in west, above the threshold of 64. It failed with "
        "worker_lost after 0.70 s, before its first token: cannot connect to east/p1."
    )


def test_a_broken_stream_says_that_tokens_had_come() -> None:
    record = a_failed_record(timeline=a_timeline(finished_s=2.0))

    assert "after 2.00 s, after its first token, which took 0.23 s: " in sentence(record)


def test_a_client_that_left_is_no_failure() -> None:
    record = a_failed_record(outcome="cancelled", code="client_gone", detail="")

    assert sentence(record).endswith(" The client left after 0.70 s, before its first token.")


def test_a_rejected_request_says_who_could_not_take_it() -> None:
    full = a_view(a_worker("west/p1", pending_requests=16), a_worker("west/d1"))
    attempt = an_attempt(full, ended_by="NoPlacement")
    record = a_failed_record(
        attempt, outcome="rejected", code="no_candidate", detail=attempt.decision.explanation
    )

    assert sentence(record) == f"Rejected with no_candidate: {attempt.decision.explanation}."


def test_a_request_that_ended_before_a_decision_says_so() -> None:
    record = a_failed_record(
        attempts=(), code="deadline_exceeded", detail="", timeline=a_timeline(first_token_s=None)
    )

    assert sentence(record) == (
        "It ended before anything was decided. It failed with deadline_exceeded after 0.70 s, "
        "before its first token."
    )


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (a_record(report=None), "Predicted first token in 0.18 s, it took 0.23 s."),
        (a_record(attempts=()), "It ended before anything was decided. It took 0.23 s."),
        (a_record(timeline=a_timeline(first_token_s=None)), "No token came; 150 kB crossed"),
    ],
    ids=["no report", "no attempt", "no token"],
)
def test_what_a_record_does_not_have_is_not_said(record: DecisionRecord, said: str) -> None:
    assert said in sentence(record)


def test_figures_in_names_are_not_grouped() -> None:
    view = a_view(a_worker("east/p1234", role="prefill"), a_worker("west/d2345", role="decode"))

    said = sentence(a_record(an_attempt(view, input_tokens=2001)))

    assert "by east/p1234 and decoded in west by west/d2345: 2,000 of 2,000" in said


# --- The rows ---------------------------------------------------------------------------------


def test_the_chosen_workers_are_marked() -> None:
    found = rows(a_record())

    assert found["east/p1"].verdict == found["west/d1"].verdict == "chosen"


def test_a_slower_candidate_lost_by_the_difference() -> None:
    view = a_view(a_worker("east/p1"), a_worker("east/p2", pending_tokens=120), a_worker("west/d1"))

    row = rows(a_record(an_attempt(view)))["east/p2"]

    assert (row.fate, row.verdict) == ("lost", "lost by 0.12 s")


def test_a_faster_candidate_that_the_rule_did_not_want_was_passed_over() -> None:
    row = rows(a_record())["west/p1"]

    assert (row.fate, row.verdict) == ("lost", "passed over, 70 ms faster")


def test_a_rejected_candidate_says_by_what_and_with_which_numbers() -> None:
    view = a_view(
        a_worker("west/p1"), a_worker("west/d1"), a_worker("west/p2", pending_requests=16)
    )

    row = rows(a_record(an_attempt(view)))["west/p2"]

    assert (row.fate, row.verdict, row.detail) == (
        "rejected",
        "rejected by full",
        "it has 16 of 16 requests",
    )
    assert row.ttft_s is None


def test_a_decode_candidate_that_was_not_taken_shows_its_load() -> None:
    view = a_view(a_worker("west/p1"), a_worker("west/d1"), a_worker("west/d2", pending_requests=3))

    row = rows(a_record(an_attempt(view)))["west/d2"]

    assert (row.verdict, row.pending_requests, row.ttft_s) == ("not chosen", 3, None)


def test_a_prefill_candidate_shows_every_term_of_its_prediction() -> None:
    row = rows(a_record())["east/p1"]

    assert row.ttft_s is not None
    assert row.prefill_s is not None
    assert row.transfer_s is not None
    assert row.ttft_s == pytest.approx(
        (row.queue_s or 0)
        + max(row.prefill_s, row.transfer_s)
        + (row.state_tail_s or 0)
        + (row.rtt_s or 0)
    )
    assert (row.uncached_tokens, row.transfer_bytes) == (100, 150_000)


def test_rows_stand_prefill_first_and_the_chosen_one_on_top() -> None:
    view = a_view(
        a_worker("east/p1", is_draining=True),
        a_worker("east/p2"),
        a_worker("east/p3", pending_tokens=9),
        a_worker("west/d1", is_draining=True),
        a_worker("west/d2"),
    )

    found = candidate_rows(a_record(an_attempt(view)))

    assert [row.worker_id for row in found] == [
        "east/p2",
        "east/p3",
        "east/p1",
        "west/d2",
        "west/d1",
    ]


def test_rows_say_which_attempt_looked_at_the_worker() -> None:
    record = a_record(an_attempt(ended_by="PrefillRefused"), an_attempt(excluded=("east/p1",)))

    assert {row.attempt for row in candidate_rows(record)} == {1, 2}


def test_without_a_placement_nobody_was_chosen() -> None:
    view = a_view(a_worker("west/d1"))
    record = a_failed_record(an_attempt(view, ended_by="NoPlacement"))

    assert [row.fate for row in candidate_rows(record)] == ["lost"]


def test_candidates_that_were_not_recorded_are_counted() -> None:
    attempt = an_attempt()
    attempt = replace(
        attempt, decision=replace(attempt.decision, omitted={"full": 9, "feasible": 1203})
    )

    assert (
        omitted_words(attempt) == "1,212 more were left out of the record: 1,203 feasible, 9 full"
    )


def test_nothing_is_said_of_candidates_when_all_were_recorded() -> None:
    assert omitted_words(an_attempt()) == ""
