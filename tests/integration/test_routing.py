"""Where requests go in the default fleet, and that the record says why."""

from __future__ import annotations

import json
from typing import Any

from fleets import Answer, Fleet, get, wait_for

from controlplane.router.records import DecisionRecord, decode_record, replay


def full_record(fleet: Fleet, answer: Answer) -> DecisionRecord:
    """The record of an answer, as the code that replays it reads it."""
    return decode_record(json.dumps(fleet.record(answer)).encode())


def reason(fleet: Fleet, answer: Answer) -> str:
    """Why it went where it went."""
    found: str = fleet.record(answer)["attempts"][-1]["decision"]["reason"]
    return found


def hits(fleet: Fleet, answer: Answer) -> dict[str, Any]:
    """What the router believed of prefixes when it decided."""
    found: dict[str, Any] = fleet.record(answer)["attempts"][-1]["features"]["prefix_hits"]
    return found


def test_a_long_prompt_goes_east(fleet: Fleet) -> None:
    """More than 512 uncached tokens are prefilled in the other datacenter."""
    answer = fleet.complete("a long prompt " * 100)

    assert answer.headers["x-prfaas-prefill"].startswith("east/")
    assert answer.headers["x-prfaas-decode"].startswith("west/")
    assert reason(fleet, answer) == "uncached_over_threshold"


def test_a_short_prompt_stays_west(fleet: Fleet) -> None:
    """Up to 512 uncached tokens are prefilled near the user."""
    answer = fleet.complete("a short prompt")

    assert answer.headers["x-prfaas-prefill"] == "west/prefill-0"
    assert reason(fleet, answer) == "uncached_within_threshold"


def test_a_long_prompt_with_a_cached_prefix_in_west_stays_west(fleet: Fleet) -> None:
    """A conversation that grows by short turns has little left to compute where its cache is."""
    turn = "the conversation goes on for one more turn of the same length as before. " * 6
    conversation = turn
    first = fleet.complete(conversation)
    assert first.headers["x-prfaas-prefill"] == "west/prefill-0"

    for _ in range(3):
        conversation += turn

        def is_known(text: str = conversation) -> Answer | None:
            probe = fleet.complete(text[: len(text) - len(turn)] + "?", max_tokens=1)
            hit = hits(fleet, probe).get("west/prefill-0", {"resumable_tokens": 0})
            return probe if hit["resumable_tokens"] >= len(text) - len(turn) - 64 else None

        wait_for(is_known, 10)
        answer = fleet.complete(conversation)
        assert answer.headers["x-prfaas-prefill"] == "west/prefill-0"

    assert len(conversation) > 3 * 512
    assert reason(fleet, answer) == "uncached_within_threshold"
    assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 1024


def test_each_recorded_decision_replays_to_itself(fleet: Fleet) -> None:
    """Features, view and seed of the record are all that the decision was made of."""
    answers = [fleet.complete("replay " * length) for length in (1, 40, 90, 200)]

    for answer in answers:
        for attempt in full_record(fleet, answer).attempts:
            assert replay(attempt) == attempt.decision


def test_a_record_says_what_was_predicted_and_what_happened(fleet: Fleet) -> None:
    """Each cost term of each candidate, and the measured times and bytes beside them."""
    answer = fleet.complete("predicted and measured " * 60)

    record = full_record(fleet, answer)
    decision = record.attempts[-1].decision

    assert decision.prediction is not None
    assert {one.role for one in decision.candidates} == {"prefill", "decode"}
    assert all(
        one.prediction or one.rejected_by or one.role == "decode" for one in decision.candidates
    )
    assert record.report is not None
    assert record.report.transfer.bytes == decision.prediction.transfer_bytes
    assert record.report.prefill.computed_tokens == decision.prediction.uncached_tokens
    assert record.timeline.first_token_s is not None
    assert record.timeline.first_token_s < record.timeline.finished_s


def test_the_state_shows_workers_queues_and_links(fleet: Fleet) -> None:
    """One document: datacenters with their workers, and the link between them."""
    state = fleet.state()

    text = json.dumps(state)
    for name in (
        "east/prefill-0",
        "east/prefill-1",
        "west/prefill-0",
        "west/decode-0",
        "east>west",
    ):
        assert name in text


def test_finished_requests_leave_nothing_behind(fleet: Fleet) -> None:
    """No lease, no job, no queue once the answers are out."""
    for _ in range(3):
        fleet.complete("leave nothing behind " * 50)

    def is_idle() -> bool:
        for name in ("east/prefill-0", "east/prefill-1", "west/prefill-0"):
            samples = fleet.metrics(name)
            if samples["prfaas_leases_active"] or samples["prfaas_queue_depth_requests"]:
                return False
        return True

    wait_for(is_idle, 5)


def test_readiness_tells_what_is_there(fleet: Fleet) -> None:
    """Counts by role, and how the store is."""
    said = get(fleet.url + "/ready").json()

    assert said["ready"] is True
    assert said["store"] == "ok"
    assert (said["prefill_workers"], said["decode_workers"]) == (3, 2)


def test_metrics_of_the_router_count_decisions_by_reason(fleet: Fleet) -> None:
    """What Prometheus scrapes from the admin listener."""
    fleet.complete("count me")

    text = get(fleet.admin_url + "/metrics").body.decode()

    assert 'prfaas_decisions_total{offloaded="no",policy="prfaas",reason="uncached_within' in text
    assert "prfaas_request_ttft_seconds_bucket" in text
