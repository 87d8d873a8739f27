from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import a_link, a_request, a_view, a_worker

from controlplane.domain.cluster import LinkView, WorkerView
from controlplane.domain.modes import Mode
from policies.filters import (
    Rejection,
    cannot_be_fed,
    cannot_hand_over,
    cannot_serve,
    is_out_of_reach,
    unwise_offloads,
)


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
            Rejection("suspect", "it failed a request a moment ago, or is silent"),
            id="suspect",
        ),
        pytest.param(
            {},
            {"is_ejected": True},
            Rejection("ejected", "it failed too many requests and is out for a while"),
            id="ejected",
        ),
        pytest.param(
            {},
            {"is_suspect": True, "is_ejected": True, "is_needed": True},
            None,
            id="doubted but needed",
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
    "ejected": {"is_ejected": True},
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
    ("resumed_tokens", "worker", "rejection"),
    [
        pytest.param(0, a_worker("west/d1"), None, id="nothing to resume"),
        pytest.param(5, a_worker("west/d1", can_resume=True), None, id="it can"),
        pytest.param(
            5,
            a_worker("west/d1"),
            Rejection("cannot_resume", "its version cannot go on with another worker's output"),
            id="it cannot",
        ),
        pytest.param(5, a_worker("west/p1"), None, id="prefill workers need not"),
    ],
)
def test_output_goes_on_only_where_it_can_be_resumed(
    resumed_tokens: int, worker: WorkerView, rejection: Rejection | None
) -> None:
    assert cannot_serve(a_request(resumed_tokens=resumed_tokens), worker) == rejection


@pytest.mark.parametrize(
    ("mode", "worker_id", "is_kept_out"),
    [
        ("normal", "east/p1", False),
        ("stale_view", "east/p1", False),
        ("store_down", "east/p1", False),
        ("local_only", "east/p1", True),
        ("local_only", "west/p1", False),
        ("local_only", "west/d1", False),
        ("shed", "west/p1", True),
        ("shed", "west/d1", True),
    ],
)
def test_a_router_that_hears_little_stays_at_home_and_one_that_hears_nothing_does_nothing(
    mode: Mode,
    worker_id: str,
    is_kept_out: bool,  # noqa: FBT001 - a table
) -> None:
    rejection = is_out_of_reach(a_worker(worker_id), a_view(mode=mode))

    assert (rejection is not None) == is_kept_out
    assert rejection is None or rejection.by == "degraded"


IDLE, BUSY = a_worker("west/p1"), a_worker("west/p1", pending_requests=4, slots=4)
AWAY = a_worker("east/p1")


@pytest.mark.parametrize(
    ("able", "link", "mode", "by"),
    [
        pytest.param((AWAY, IDLE), {}, "normal", None, id="all is well"),
        pytest.param((AWAY, IDLE), {"is_measured": False}, "normal", None, id="an idle link"),
        pytest.param((AWAY, IDLE), {"is_down": True}, "normal", "link_down", id="link down"),
        pytest.param((AWAY,), {"is_down": True}, "normal", None, id="link down, the only way"),
        pytest.param((AWAY, IDLE), {}, "stale_view", "degraded", id="speculative"),
        pytest.param((AWAY, BUSY), {}, "stale_view", None, id="stale, but there is no room"),
        pytest.param((AWAY,), {}, "stale_view", None, id="stale, the only way"),
        pytest.param((AWAY, IDLE), {}, "store_down", "degraded", id="no store, speculative"),
        pytest.param((AWAY, BUSY), {}, "store_down", None, id="no store, a link that works"),
        pytest.param(
            (AWAY, BUSY), {"is_measured": False}, "store_down", "degraded", id="not measured"
        ),
        pytest.param(
            (AWAY,), {"is_measured": False}, "store_down", None, id="not measured, the only way"
        ),
    ],
)
def test_an_unwise_offload_is_kept_out_while_there_is_another_way(
    able: tuple[WorkerView, ...], link: dict[str, Any], mode: Mode, by: str | None
) -> None:
    view = a_view(links=(a_link(**link),), mode=mode)

    unwise = unwise_offloads(able, a_worker("west/d1"), view)

    assert {site: rejection.by for site, rejection in unwise.items()} == (
        {} if by is None else {"east": by}
    )


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
            Rejection("fingerprint", "its KV does not fit west/d1: g here and f there"),
            id="another fingerprint",
        ),
        pytest.param(
            a_worker("east/p1", fingerprint="g"),
            (),
            Rejection("fingerprint", "its KV does not fit west/d1: g here and f there"),
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

    assert cannot_be_fed(a_worker("west/d1"), [(one, 1) for one in prefills], view) == rejection
