from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.cluster import LinkView, WorkerView
from policies.filters import Rejection, cannot_be_fed, cannot_hand_over, cannot_serve


@pytest.mark.parametrize("worker_id", ["west/p1", "west/d1"], ids=["prefill", "decode"])
@pytest.mark.parametrize(
    ("request_overrides", "worker_overrides", "rejection"),
    [
        pytest.param({}, {}, None, id="nothing is wrong"),
        pytest.param(
            {"excluded": ("west/p1", "west/d1")},
            {},
            Rejection("failed_before", "it has failed this request"),
            id="it failed before",
        ),
        pytest.param({"excluded": ("east/p1",)}, {}, None, id="another one failed before"),
        pytest.param(
            {},
            {"is_suspect": True},
            Rejection("suspect", "it failed another request a moment ago"),
            id="suspect",
        ),
        pytest.param(
            {},
            {"is_draining": True},
            Rejection("draining", "it takes no new work"),
            id="draining",
        ),
        pytest.param({}, {"model": "n"}, Rejection("model", "it serves n"), id="another model"),
        pytest.param(
            {"input_tokens": 100, "output_tokens_max": 29},
            {"context_tokens_max": 128},
            Rejection("context", "129 tokens exceed 128"),
            id="one token too long",
        ),
        pytest.param(
            {"input_tokens": 100, "output_tokens_max": 28},
            {"context_tokens_max": 128},
            None,
            id="exactly the context",
        ),
        pytest.param(
            {},
            {"pending_requests": 16, "requests_max": 16},
            Rejection("full", "it has 16 of 16 requests"),
            id="full",
        ),
        pytest.param(
            {},
            {"pending_requests": 17, "requests_max": 16},
            Rejection("full", "it has 17 of 16 requests"),
            id="over-full",
        ),
        pytest.param(
            {}, {"pending_requests": 15, "requests_max": 16}, None, id="room for one more"
        ),
    ],
)
def test_a_worker_is_kept_out_by_each_rule(
    worker_id: str,
    request_overrides: dict[str, Any],
    worker_overrides: dict[str, Any],
    rejection: Rejection | None,
) -> None:
    request = a_request(**request_overrides)
    worker = a_worker(worker_id, **worker_overrides)

    assert cannot_serve(request, worker) == rejection


TROUBLES: dict[str, dict[str, Any]] = {
    "suspect": {"is_suspect": True},
    "draining": {"is_draining": True},
    "model": {"model": "n"},
    "context": {"context_tokens_max": 1},
    "full": {"requests_max": 1, "pending_requests": 1},
}


@pytest.mark.parametrize("position", range(len(TROUBLES)), ids=list(TROUBLES))
def test_of_several_rules_the_first_in_the_list_is_named(position: int) -> None:
    worker = a_worker()
    for trouble in list(TROUBLES.values())[position:]:
        worker = replace(worker, **trouble)

    rejection = cannot_serve(a_request(), worker)

    assert rejection is not None
    assert rejection.by == list(TROUBLES)[position]


def test_having_failed_before_comes_before_every_other_rule() -> None:
    worker = a_worker()
    for trouble in TROUBLES.values():
        worker = replace(worker, **trouble)

    rejection = cannot_serve(a_request(excluded=(worker.worker_id,)), worker)

    assert rejection is not None
    assert rejection.by == "failed_before"


@pytest.mark.parametrize(
    ("prefill", "links", "rejection"),
    [
        pytest.param(a_worker("west/p1"), (), None, id="one datacenter needs no link"),
        pytest.param(a_worker("east/p1"), (a_link("east", "west"),), None, id="a link"),
        pytest.param(
            a_worker("east/p1"),
            (),
            Rejection("no_link", "no link east>west"),
            id="no link",
        ),
        pytest.param(
            a_worker("east/p1"),
            (a_link("west", "east"),),
            Rejection("no_link", "no link east>west"),
            id="a link in the other direction",
        ),
        pytest.param(
            a_worker("west/p1", fingerprint="g"),
            (),
            Rejection("fingerprint", "its KV does not fit west/d1"),
            id="another fingerprint",
        ),
        pytest.param(
            a_worker("east/p1", fingerprint="g"),
            (),
            Rejection("fingerprint", "its KV does not fit west/d1"),
            id="another fingerprint and no link",
        ),
    ],
)
def test_kv_needs_a_fitting_fingerprint_and_a_way(
    prefill: WorkerView, links: tuple[LinkView, ...], rejection: Rejection | None
) -> None:
    view = a_view(links=links)

    assert cannot_hand_over(prefill, a_worker("west/d1"), view) == rejection


@pytest.mark.parametrize(
    ("prefills", "rejection"),
    [
        pytest.param((a_worker("west/p1"),), None, id="one that can"),
        pytest.param(
            (a_worker("west/p1", fingerprint="g"), a_worker("west/p2")),
            None,
            id="one of two that can",
        ),
        pytest.param(
            (a_worker("west/p1", fingerprint="g"), a_worker("east/p1"), a_worker("east/p2")),
            Rejection(
                "placement", "no prefill worker can hand over to it (1 fingerprint, 2 no_link)"
            ),
            id="none that can",
        ),
        pytest.param((), None, id="nobody at all is not its fault"),
    ],
)
def test_a_decode_worker_needs_a_prefill_worker_that_can_hand_over(
    prefills: tuple[WorkerView, ...], rejection: Rejection | None
) -> None:
    view = a_view(links=())

    assert cannot_be_fed(a_worker("west/d1"), prefills, view) == rejection
