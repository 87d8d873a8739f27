"""What workers are told of an attempt, what a request may ask for, and the words of its end."""

from __future__ import annotations

from typing import Any

import pytest
from builders import a_location, a_worker, an_output

from controlplane.config import LimitsConfig
from controlplane.domain.byte_tokenizer import encode_text
from controlplane.errors import (
    InternalError,
    NoCandidate,
    RequestQuarantined,
    WorkerLost,
    WorkerTimeout,
)
from controlplane.router.incoming import Incoming
from controlplane.router.jobs import decode_job, final_error, prefill_job, terms_of
from controlplane.wire import Sampling

TOKENS = encode_text("hello")


def an_incoming(**overrides: Any) -> Incoming:
    """A streamed request."""
    values: dict[str, Any] = {
        "request_id": "req-1",
        "decision_id": "dec-1",
        "client_request_id": None,
        "tokens": TOKENS,
        "hashes": (),
        "block_tokens": 16,
        "scope": "scope",
        "sampling": Sampling(output_tokens_max=16),
        "output": an_output(),
        "accepted_s": 0.0,
        "parsed_s": 0.0,
        "at": 0.0,
        "deadline_s": 60.0,
    }
    return Incoming(**(values | overrides))


def test_terms_are_the_limits_of_the_router() -> None:
    limits = LimitsConfig(redispatch_max=4, migrations_max=5)

    terms = terms_of(an_incoming(), limits, can_wait=True)

    assert (terms.attempts_max, terms.migrations_max) == (4, 5)
    assert (terms.is_stream, terms.can_wait, terms.can_resume) == (True, True, True)


def test_terms_know_who_sees_output_as_it_is_made() -> None:
    whole = an_incoming(output=an_output(is_stream=False))

    assert not terms_of(whole, LimitsConfig(), can_wait=False).is_stream


@pytest.mark.parametrize(
    ("temperature", "seed", "can_resume"),
    [(0, None, True), (0, 7, True), (0.5, None, True), (0.5, 7, False), (0.5, 0, False)],
)
def test_only_a_seeded_draw_depends_on_more_than_the_tokens(
    temperature: float, seed: int | None, *, can_resume: bool
) -> None:
    sampling = Sampling(temperature=temperature, seed=seed, output_tokens_max=16)

    terms = terms_of(an_incoming(sampling=sampling), LimitsConfig(), can_wait=False)

    assert terms.can_resume == can_resume


def test_a_prefill_job_names_the_life_it_was_meant_for() -> None:
    job = prefill_job(
        an_incoming(),
        "req-1.2",
        TOKENS,
        prefill=a_worker("east/p1", incarnation="i7", fingerprint="f7"),
        decode=a_worker("west/d1"),
        remaining_s=3.5,
    )

    assert (job.request_id, job.incarnation, job.fingerprint) == ("req-1.2", "i7", "f7")
    assert (job.destination, job.deadline_s, job.scope) == ("west", 3.5, "scope")
    assert job.token_width_bytes == TOKENS.width_bytes


def test_a_decode_job_says_what_is_output_already() -> None:
    job = decode_job(
        an_incoming(),
        "req-1.2",
        TOKENS,
        resumed_tokens=3,
        decode=a_worker("west/d1", incarnation="i7"),
        location=a_location(segment_id="there"),
        remaining_s=3.5,
    )

    assert (job.request_id, job.incarnation) == ("req-1.2", "i7")
    assert (job.resumed_tokens, job.wants_tokens) == (3, True)
    assert (job.location.segment_id, job.deadline_s) == ("there", 3.5)


@pytest.mark.parametrize(
    ("code", "attempts", "detail", "kind", "message"),
    [
        ("no_candidate", 1, "", NoCandidate, "no worker can take the request now"),
        ("worker_lost", 1, "reset", WorkerLost, "a worker was lost: reset"),
        (
            *("worker_timeout", 3, "silent", WorkerTimeout),
            "a worker did not answer in time after 3 attempts: silent",
        ),
        ("link_down", 1, "", Exception, "the request failed"),
    ],
)
def test_the_last_error_says_what_was_tried(
    code: str, attempts: int, detail: str, kind: type[Exception], message: str
) -> None:
    error = final_error(code, attempts=attempts, detail=detail)

    assert isinstance(error, kind)
    assert (error.code, error.message) == (code, message)
    assert error.retry_after_s == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [("request_quarantined", RequestQuarantined), ("internal_error", InternalError)],
)
def test_nobody_is_asked_to_try_again_what_will_fail_again(
    code: str, kind: type[Exception]
) -> None:
    error = final_error(code, attempts=2, detail="")

    assert isinstance(error, kind)
    assert error.retry_after_s is None
