"""
Copies of cached prefixes across a link: who could give one, and what it would save.

The paper copies whenever bandwidth is abundant and the longer cache is elsewhere. That can cost more
than computing: the copy is weighed here, with its bytes, the link's rate and what is promised on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from heapq import nlargest
from itertools import islice
from typing import Final

from controlplane.domain.cluster import ClusterView, WorkerView
from controlplane.domain.decision import RequestFeatures
from controlplane.domain.estimate import CacheCopy, predict
from controlplane.domain.prefix_hits import SharedHits
from policies.pipeline import Option
from policies.search import HOLDERS_MAX, crowd_min

#: Datacenters that are looked at for a copy: a shorter prefix from a fifth one is hardly ever better.
_SOURCES_MAX: Final = 4
#: Of a crowd of holders so many are asked in each datacenter, and in all: those that cannot give are
#: few, or are all of them alike.
_ASKED_EACH_MAX: Final = 2
_ASKED_MAX: Final = 16


def copy_sources(request: RequestFeatures, view: ClusterView) -> dict[str, CacheCopy]:
    """
    The longest prefixes that datacenters could give away, by datacenter, the longest first.

    Args:
        request: For its hits.
        view: For the workers that have them; one that failed, is doubted or leaves gives nothing.
    """
    if view.prefix_trust < 1:
        # A discounted hit is a guess, and a copy needs a position that a prefill can resume from.
        return {}
    if isinstance(request.prefix_hits, SharedHits):
        found = _of_crowd(request, request.prefix_hits, view)
    else:
        found = _of_each(request, view)
    longest = nlargest(_SOURCES_MAX, found, key=lambda site: (found[site].tokens, site))
    return {site: found[site] for site in longest}


def _of_each(request: RequestFeatures, view: ClusterView) -> dict[str, CacheCopy]:
    found: dict[str, CacheCopy] = {}
    tokens_max, find = request.prefill_tokens, view.find
    for worker_id, hit in request.prefix_hits.items():
        tokens = min(hit.resumable_tokens, tokens_max)
        site = worker_id.partition("/")[0]
        # Most hits are the same few common blocks; only a longer one is worth a look.
        if tokens <= (found[site].tokens if site in found else 0):
            continue
        worker = find(worker_id)
        if worker is not None and _can_give(worker, request):
            found[site] = CacheCopy(worker, tokens)
    return found


def _of_crowd(
    request: RequestFeatures, hits: SharedHits, view: ClusterView
) -> dict[str, CacheCopy]:
    """The same of thousands of hits: the longest few, and for each datacenter one of the others."""
    names, crowd = hits.longest(HOLDERS_MAX, crowd_min=crowd_min(view))
    found = _of_each(replace(request, prefix_hits={name: hits[name] for name in names}), view)
    if crowd is None or not crowd.resumable_tokens:
        return found
    asked = 0
    for site in reversed(hits.datacenters()):
        if len(found) >= _SOURCES_MAX or asked >= _ASKED_MAX:
            break
        for worker_id, hit in islice(hits.longest_first(site), _ASKED_EACH_MAX):
            asked += 1
            worker = view.worker(worker_id)
            if site not in found and worker is not None and _can_give(worker, request):
                tokens = min(hit.resumable_tokens, request.prefill_tokens)
                found[site] = CacheCopy(worker, tokens)
    return found


def _can_give(worker: WorkerView, request: RequestFeatures) -> bool:
    allowed = request.allowed_datacenters
    return (
        worker.can_export_prefix
        and worker.model == request.model
        and worker.worker_id not in request.excluded
        and not (worker.is_suspect or worker.is_ejected or worker.is_draining)
        and (allowed is None or worker.datacenter in allowed)
    )


def with_best_copy(
    option: Option,
    request: RequestFeatures,
    view: ClusterView,
    decode: WorkerView,
    sources: Mapping[str, CacheCopy],
) -> Option | None:
    """
    The option with the copy that makes it fastest, or None when there is none to make.

    Links that are down or scarce carry no copies. The result may still be slower than the option
    without a copy: that is for the caller to weigh.
    """
    if not sources:
        return None
    candidates = [
        _with_copy(option, request, view, decode, copy)
        for copy in _fitting(option, request, view, sources.values())
    ]
    return min(candidates, key=lambda one: one.prediction.ttft_s, default=None)


def _fitting(
    option: Option, request: RequestFeatures, view: ClusterView, copies: Iterable[CacheCopy]
) -> Iterable[CacheCopy]:
    held_tokens = request.prefill_tokens - option.prediction.uncached_tokens
    for copy in copies:
        source, target = copy.source, option.worker
        if copy.tokens <= held_tokens or source.fingerprint != target.fingerprint:
            continue
        if source.datacenter == target.datacenter:
            continue
        link = view.link(source.datacenter, target.datacenter)
        if link is not None and not (link.is_down or link.is_scarce):
            yield copy


def _with_copy(
    option: Option,
    request: RequestFeatures,
    view: ClusterView,
    decode: WorkerView,
    copy: CacheCopy,
) -> Option:
    return replace(
        option,
        prediction=predict(request, option.worker, decode, view, copy),
        copy_from_worker=copy.source.worker_id,
        copy_tokens=copy.tokens,
    )
