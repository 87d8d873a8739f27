"""
Follows the documents that all routers share: the live policy and the plan.

The store's events say that there is a new version, and it is read at once; so it is when the events
were followed anew, for one may have been missed. A slow look besides catches what was lost otherwise. A document that cannot be read, or names what is not
installed here, changes nothing: the router goes on with what it has, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from controlplane.errors import StoreError
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.policy_document import read_document
from controlplane.router.services import Services
from controlplane.router.view import ViewTracker
from controlplane.store.api import Document, Published, StateStore, Topic
from controlplane.wire_plan import decode_plan

_log = get_logger()

#: Looked for without being told, seconds: an event that the store has lost is made up for.
_LOOK_S: Final = 30.0
#: After a failed call.
_RETRY_S: Final = 1.0

#: Takes a document in; raises ValueError for one it cannot use.
Taker: TypeAlias = Callable[[Document], None]


class DocumentFeed:
    """The task that reads new versions of documents for one router."""

    def __init__(
        self, store: StateStore, metrics: RouterMetrics, takers: Mapping[Topic, Taker]
    ) -> None:
        """
        Nothing is read yet.

        Args:
            store: Where they stand.
            metrics: Counts what could not be read.
            takers: Who takes each topic.
        """
        self._store = store
        self._metrics = metrics
        self._takers = takers
        #: Last version taken or refused, by topic, with its body: a store that was lost counts anew.
        self._seen: dict[Topic, Document] = {}
        self._wake = asyncio.Event()

    def published(self, published: Published) -> None:
        """A new version stands in the store."""
        if published.topic in self._takers:
            self._wake.set()

    def missed(self) -> None:
        """Events may have been lost with the connection: whatever they said is looked for now."""
        self._wake.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            wait_s = _LOOK_S if await self.look() else _RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def look(self) -> bool:
        """Read every topic once; false when the store did not answer."""
        self._wake.clear()
        try:
            for topic in self._takers:
                self._take(topic, await self._store.document(topic))
        except StoreError:
            self._metrics.store_errors_total.labels("document").inc()
            return False
        return True

    def version(self, topic: Topic) -> int:
        """Version that was read last; 0 when none was."""
        seen = self._seen.get(topic)
        return seen.version if seen else 0

    def _take(self, topic: Topic, document: Document | None) -> None:
        """Hand a new one on; one that is gone, with the store that held it, still holds."""
        if document is None or document == self._seen.get(topic):
            return
        self._seen[topic] = document
        try:
            self._takers[topic](document)
        except ValueError as error:
            self._metrics.documents_refused_total.labels(topic).inc()
            _log.error(
                "document.refused", reason=topic, version=document.version, detail=str(error)[:500]
            )


def take_policy(services: Services, document: Document) -> None:
    """
    Let the policy of a published document decide.

    Raises:
        ValueError: It is no such document, or names what is not installed here.
    """
    published = read_document(document.body)
    live = published.live.load()
    shadows = [choice.load() for choice in published.shadows]
    services.switch(live, shadows, version=document.version)


def take_plan(tracker: ViewTracker, document: Document) -> None:
    """
    Show policies the published plan.

    Raises:
        ValueError: It is none.
    """
    tracker.follow_plan(decode_plan(document.body))
