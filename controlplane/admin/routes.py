"""Handlers of the admin listener: never in the way of a request."""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib import resources
from typing import Any, Final
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic_core import to_json, to_jsonable_python

from controlplane.admin.decision_page import decision_page
from controlplane.admin.decisions import DecisionLog, FoundDecision, decision_id_of
from controlplane.admin.explain import candidate_rows, sentence
from controlplane.admin.gauges import refresh_gauges
from controlplane.admin.layout import html_response
from controlplane.admin.link_meter import LinkMeter
from controlplane.admin.notes import notes
from controlplane.admin.phases import phases
from controlplane.admin.policies import all_parameters, change_policy, policy_document
from controlplane.admin.problems import quoted
from controlplane.admin.state import RouterFacts, WorkerHoldings, state_document
from controlplane.admin.status_page import SHOWN_DECISIONS, status_page
from controlplane.config import FleetConfig
from controlplane.errors import ForeignPage, MalformedRequest, UnknownDecision, UnknownRoute
from controlplane.router.services import Services

_LIMIT_DEFAULT: Final = 50
_LIMIT_MAX: Final = 500
_NUMBER: Final = re.compile(r"[0-9]{1,6}", re.ASCII)

_STATIC_TYPES: Final = {
    "admin.css": "text/css",
    "status.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


class Routes:
    """What each route answers."""

    def __init__(self, services: Services, fleet: FleetConfig) -> None:
        self._services = services
        self._fleet = fleet
        self._datacenters = tuple(site.name for site in fleet.datacenters)
        self._log = DecisionLog(services.recorder, services.store)
        self._meter = LinkMeter(services.clock)
        static = resources.files("controlplane.admin") / "static"
        self._static = {name: (static / name).read_bytes() for name in _STATIC_TYPES}

    # --- The API ------------------------------------------------------------------------------

    async def state(self, request: web.Request) -> web.StreamResponse:
        """Datacenters, workers, links, view, policy."""
        _only_parameters(request)
        return _json(self._state())

    async def decisions(self, request: web.Request) -> web.StreamResponse:
        """Summaries of decisions, newest first."""
        _only_parameters(request, "limit", "before")
        limit, before = _limit(request), _before(request)
        return _json(asdict(await self._log.page(limit=limit, before=before)))

    async def decision(self, request: web.Request) -> web.StreamResponse:
        """One record, and what it means."""
        _only_parameters(request)
        found = await self._find(request)
        record: dict[str, Any] = to_jsonable_python(found.record, inf_nan_mode="null")
        return _json(
            {
                **record,
                "source": found.source,
                "explanation": sentence(found.record),
                "candidates": candidate_rows(found.record),
                "phases": phases(found.record),
                "notes": notes(found.record),
            }
        )

    async def policy(self, request: web.Request) -> web.StreamResponse:
        """The live policy, its shadows, past changes, and all that are installed."""
        _only_parameters(request)
        return _json(await policy_document(self._services))

    async def put_policy(self, request: web.Request) -> web.StreamResponse:
        """Change the live policy of all routers."""
        _only_parameters(request)
        _check_origin(request)
        return _json(await change_policy(self._services, await request.read()))

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """The plan that policies see now; null when there is none."""
        _only_parameters(request)
        return _json({"plan": self._services.tracker.view().plan})

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Metrics as Prometheus text."""
        del request
        tracker, metrics = self._services.tracker, self._services.metrics
        refresh_gauges(
            metrics,
            tracker.view(),
            view_age_s=tracker.age_s(),
            datacenters=self._datacenters,
            states=tracker.states().values(),
        )
        body = generate_latest(metrics.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def health(self, request: web.Request) -> web.StreamResponse:
        """The process answers; whether it can route is what `/ready` of the data listener says."""
        del request
        return _json({"status": "ok"})

    # --- The pages ----------------------------------------------------------------------------

    async def status_page(self, request: web.Request) -> web.StreamResponse:
        """The status page."""
        del request
        decisions = await self._log.page(limit=SHOWN_DECISIONS, before=None)
        return html_response(status_page(self._state(), asdict(decisions)))

    async def decision_page(self, request: web.Request) -> web.StreamResponse:
        """The page of one decision."""
        return html_response(decision_page(await self._find(request)))

    async def static(self, request: web.Request) -> web.StreamResponse:
        """Style sheet, script and icon, from memory: no path of a client touches a disk."""
        name = request.match_info["name"]
        if name not in self._static:
            raise UnknownRoute(f"no static file {quoted(name)}")
        return web.Response(
            body=self._static[name], content_type=_STATIC_TYPES[name], charset="utf-8"
        )

    # --- Inside -------------------------------------------------------------------------------

    async def _find(self, request: web.Request) -> FoundDecision:
        given = request.match_info["id"]
        decision_id = decision_id_of(given)
        if decision_id is None:
            raise UnknownDecision(
                f"{quoted(given)} is no id of a request or decision: those are req- or dec- and "
                "hexadecimal digits, as in the answer's x-request-id"
            )
        return await self._log.find(decision_id)

    def _state(self) -> dict[str, Any]:
        services, tracker = self._services, self._services.tracker
        view = tracker.view()
        beats = {worker.worker_id: tracker.beat(worker.worker_id) for worker in view.workers}
        states = tracker.states()
        bytes_total = tracker.link_bytes_total()
        in_flight = services.metrics.registry.get_sample_value("prfaas_requests_in_flight")
        facts = RouterFacts(
            router_id=services.router_id,
            fleet=self._fleet.name,
            datacenters=self._datacenters,
            policy=services.policy.name,
            policy_parameters=all_parameters(services),
            policy_version=services.policy_version,
            shadows=[named.policy.name for named in services.shadows.policies],
            is_store_away=tracker.is_store_away,
            view_age_s=tracker.age_s(),
            requests_in_flight=int(in_flight or 0),
            requests_max=services.limits.requests_max,
            holdings={
                worker_id: WorkerHoldings(
                    held_blocks=tracker.held_blocks(worker_id),
                    kv_bytes=beat.load.kv_bytes,
                    silence_s=tracker.silence_s(worker_id),
                    state=states[worker_id],
                )
                for worker_id, beat in beats.items()
                if beat is not None
            },
            link_bytes_total=bytes_total,
            link_egress_bps=self._meter.egress_bps(bytes_total),
        )
        return state_document(view, facts)


def _json(document: object) -> web.Response:
    body = to_json(document, inf_nan_mode="null")
    return web.Response(body=body, content_type="application/json")


def _only_parameters(request: web.Request, *known: str) -> None:
    """A misspelt parameter is an error, not a default; so is one that is there twice."""
    for name in request.query:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise MalformedRequest(
                f"unknown parameter {quoted(name)}; known here: {listed}", param=name[:64]
            )
        if len(request.query.getall(name)) > 1:
            raise MalformedRequest(f"{name} is there more than once", param=name)


def _check_origin(request: web.Request) -> None:
    """
    Let no page of another site change anything through the browser of somebody who may.

    A form cannot send JSON, and a script that does so says where it comes from.
    """
    if request.content_type != "application/json":
        raise ForeignPage("send the change as JSON, with content-type: application/json")
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and urlsplit(origin).netloc != request.host:
        raise ForeignPage(f"pages of {quoted(origin)} may not change anything here")


def _limit(request: web.Request) -> int:
    given = request.query.get("limit", str(_LIMIT_DEFAULT))
    limit = int(given) if _NUMBER.fullmatch(given) else 0
    if not 1 <= limit <= _LIMIT_MAX:
        raise MalformedRequest(
            f"limit must be a number from 1 to {_LIMIT_MAX}, got {quoted(given)}", param="limit"
        )
    return limit


def _before(request: web.Request) -> str | None:
    given = request.query.get("before")
    if given is None:
        return None
    decision_id = decision_id_of(given)
    if decision_id is None:
        raise MalformedRequest(
            f"before must be the `next` of an earlier answer, a decision id, got {quoted(given)}",
            param="before",
        )
    return decision_id
