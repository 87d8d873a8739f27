from __future__ import annotations

from dataclasses import replace

from builders import a_view, a_worker
from hypothesis import given
from hypothesis import strategies as st
from strategies import links, requests, workers

from controlplane.domain.cluster import ClusterView, LinkView, WorkerView
from controlplane.domain.decision import Prediction, RequestFeatures
from controlplane.domain.estimate import predict, transfer_time_s

DECODE = a_worker("west/d1")

prefills = st.sampled_from(("east/p1", "west/p1")).flatmap(workers)
linked = st.builds(lambda link: a_view(links=(link,)), links("east", "west"))


def predicted(request: RequestFeatures, prefill: WorkerView, view: ClusterView) -> Prediction:
    return predict(request, prefill, DECODE, view)


@given(requests(), prefills, linked, st.integers(0, 1 << 20))
def test_more_queue_never_makes_ttft_smaller(
    request: RequestFeatures, prefill: WorkerView, view: ClusterView, more: int
) -> None:
    before = predicted(request, prefill, view)

    busier = replace(
        prefill,
        pending_tokens=prefill.pending_tokens + more,
        pending_requests=prefill.pending_requests + 1,
    )

    # Waiting for the worker and for the link overlap, and their sum is rounded.
    assert predicted(request, busier, view).ttft_s >= before.ttft_s * (1 - 1e-12)


@given(requests(), prefills, linked, st.integers(0, 1 << 40))
def test_a_busier_link_never_makes_ttft_smaller(
    request: RequestFeatures, prefill: WorkerView, view: ClusterView, more: int
) -> None:
    before = predicted(request, prefill, view)

    (link,) = view.links
    busier = replace(view, links=(replace(link, reserved_bytes=link.reserved_bytes + more),))

    assert predicted(request, prefill, busier).ttft_s >= before.ttft_s


@given(requests(), prefills, linked)
def test_a_longer_prompt_never_makes_ttft_smaller(
    request: RequestFeatures, prefill: WorkerView, view: ClusterView
) -> None:
    before = predicted(request, prefill, view)

    longer = replace(request, input_tokens=request.input_tokens + 1)

    assert predicted(longer, prefill, view).ttft_s >= before.ttft_s


@given(requests(), prefills, linked)
def test_a_cache_never_makes_ttft_or_bytes_larger(
    request: RequestFeatures, prefill: WorkerView, view: ClusterView
) -> None:
    cached = predicted(request, prefill, view)

    fresh = predicted(replace(request, prefix_hits={}), prefill, view)

    assert cached.ttft_s <= fresh.ttft_s
    assert cached.transfer_bytes <= fresh.transfer_bytes
    assert cached.uncached_tokens <= fresh.uncached_tokens


@given(requests(), prefills, linked)
def test_a_prediction_adds_up(
    request: RequestFeatures, prefill: WorkerView, view: ClusterView
) -> None:
    it = predicted(request, prefill, view)

    assert it.ttft_s == it.queue_s + max(it.prefill_s, it.transfer_s) + it.state_tail_s + it.rtt_s
    assert 0 <= it.uncached_tokens <= request.prefill_tokens
    assert it.transfer_bytes >= prefill.kv_state_bytes
    for seconds in (it.queue_s, it.prefill_s, it.transfer_s, it.state_tail_s, it.rtt_s):
        assert seconds >= 0


@given(links("east", "west"), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_transfer_time_grows_with_bytes(link: LinkView, fewer: int, more: int) -> None:
    assert transfer_time_s(fewer + more, link) >= transfer_time_s(fewer, link) >= 0
