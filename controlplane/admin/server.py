"""The admin listener: state, decisions, metrics, the status page, and the policy that decides."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from controlplane.admin.layout import add_security_headers
from controlplane.admin.problems import guard
from controlplane.admin.routes import Routes
from controlplane.config import FleetConfig
from controlplane.router.services import Services

#: A change of policy; parameters with long tables have a hundredth of it.
_BODY_BYTES_MAX: Final = 64 << 10


class AdminServer:
    """Routes of the admin listener, which has a port of its own; see docs/admin-api.md."""

    def __init__(self, *, services: Services, fleet: FleetConfig) -> None:
        self._routes = Routes(services, fleet)

    def application(self) -> web.Application:
        """The routes, with every error in one shape."""
        app = web.Application(middlewares=[guard], client_max_size=_BODY_BYTES_MAX)
        app.on_response_prepare.append(add_security_headers)
        routes, add = self._routes, app.router.add_get
        add("/", routes.status_page)
        add("/decisions/{id}", routes.decision_page)
        add("/static/{name}", routes.static)
        add("/admin/v1/state", routes.state)
        add("/admin/v1/decisions", routes.decisions)
        add("/admin/v1/decisions/{id}", routes.decision)
        add("/admin/v1/policy", routes.policy)
        add("/admin/v1/plan", routes.plan)
        app.router.add_put("/admin/v1/policy", routes.put_policy)
        add("/metrics", routes.metrics)
        add("/health", routes.health)
        return app
