from __future__ import annotations

import pytest
from admin_world import a_failed_record, a_record, a_report, a_timeline, an_attempt

from controlplane.admin.phases import Phase, phases
from controlplane.router.records import DecisionRecord
from controlplane.wire import TransferReport


def spans(record: DecisionRecord) -> dict[str, tuple[float, float]]:
    return {
        phase.name: (round(phase.begins_s, 6), round(phase.ends_s, 6)) for phase in phases(record)
    }


def test_a_request_that_went_well_has_all_phases() -> None:
    assert spans(a_record()) == {
        "parse": (0.0, 0.002),
        "decide": (0.002, 0.003),
        "reserve": (0.003, 0.004),
        "hand over": (0.004, 0.01),
        "prefill queue": (0.01, 0.03),
        "prefill": (0.03, 0.13),
        "transfer": (0.06, 0.21),
        "first token": (0.21, 0.23),
        "stream": (0.23, 0.7),
    }


def test_without_bytes_there_is_no_transfer() -> None:
    record = a_record(report=a_report(transfer=TransferReport()))

    assert "transfer" not in spans(record)


def test_without_a_reservation_the_job_is_handed_over_after_the_decision() -> None:
    record = a_record(timeline=a_timeline(reserved_s=None))

    assert spans(record)["hand over"] == (0.003, 0.01)


def test_what_was_before_the_last_decision_is_told_as_earlier_attempts() -> None:
    record = a_record(
        an_attempt(ended_by="PrefillWorkerLost"),
        an_attempt(excluded=("east/p1",)),
        timeline=a_timeline(decided_s=0.3, reserved_s=0.31, prefill_accepted_s=0.32),
    )

    assert spans(record)["earlier attempts"] == (0.002, 0.3)


def test_moments_of_an_attempt_that_was_given_up_are_left_out() -> None:
    record = a_failed_record(
        an_attempt(ended_by="LinkDown"),
        an_attempt(excluded=("east/p1",), ended_by="ReservationRefused"),
        timeline=a_timeline(decided_s=0.3, first_token_s=None),
    )

    assert spans(record) == {
        "parse": (0.0, 0.002),
        "earlier attempts": (0.002, 0.3),
        "until the end": (0.3, 0.7),
    }


def test_a_stream_that_migrated_goes_on_after_its_last_transfer() -> None:
    record = a_record(
        an_attempt(ended_by="DecodeWorkerLost"),
        an_attempt(excluded=("west/d1",), resumed_tokens=20),
        timeline=a_timeline(
            decided_s=0.3,
            reserved_s=0.31,
            prefill_accepted_s=0.32,
            first_token_s=0.2,
            resumed_s=0.6,
        ),
    )

    assert spans(record) == {
        "parse": (0.0, 0.002),
        "earlier attempts": (0.002, 0.3),
        "reserve": (0.3, 0.31),
        "hand over": (0.31, 0.32),
        "prefill queue": (0.32, 0.34),
        "prefill": (0.34, 0.44),
        "transfer": (0.37, 0.52),
        "output goes on": (0.52, 0.6),
        "stream": (0.6, 0.7),
    }


def test_a_request_that_waited_for_its_prefix_says_so() -> None:
    record = a_record(timeline=a_timeline(turn_came_s=0.0025))

    assert spans(record)["wait for prefix"] == (0.002, 0.0025)
    assert spans(record)["decide"] == (0.0025, 0.003)


def test_a_request_that_was_never_decided_ends_after_parsing() -> None:
    record = a_failed_record(
        attempts=(), timeline=a_timeline(decided_s=None, first_token_s=None, finished_s=0.5)
    )

    assert spans(record) == {"parse": (0.0, 0.002), "until the end": (0.002, 0.5)}


@pytest.mark.parametrize("finished_s", [0.0, 0.05, 0.7])
def test_no_phase_sticks_out_of_the_request(finished_s: float) -> None:
    record = a_record(timeline=a_timeline(finished_s=finished_s))

    def is_inside(phase: Phase) -> bool:
        return 0 <= phase.begins_s <= phase.ends_s <= finished_s

    assert all(map(is_inside, phases(record)))
