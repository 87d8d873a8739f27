"""
Every error that leaves a process, one class per thing a caller or operator would treat differently.

PrfaasError                  code                    status  retryable
├── RequestError             the caller can change something
│   ├── MalformedRequest     malformed_request       400
│   ├── UnsupportedParameter unsupported_parameter   400
│   ├── ContextTooLong       context_length_exceeded 400
│   ├── UnknownModel         unknown_model           404
│   ├── UnknownDecision      unknown_decision        404
│   ├── UnknownRoute         unknown_route           404
│   ├── MethodNotAllowed     method_not_allowed      405
│   ├── RequestTooLarge      request_too_large       413
│   ├── RequestQuarantined   request_quarantined     422
│   ├── KeyInUse             idempotency_key_in_use  409     yes
│   ├── KeyMismatch          idempotency_key_reused  422
│   ├── ConflictingChange    conflicting_change      409     yes
│   └── ForeignPage          foreign_page            403
├── CapacityError            nothing to run it on now
│   ├── Shed                 shed_overload           429     yes
│   ├── NoCandidate          no_candidate            503     yes
│   ├── Draining             draining                503     yes
│   └── DeadlineExceeded     deadline_exceeded       504     yes
├── PeerError                another process failed
│   ├── WorkerLost           worker_lost             503     yes
│   ├── WorkerRefused        worker_refused          503     yes
│   ├── WorkerTimeout        worker_timeout          504     yes
│   ├── RoleRefused          role_refused            409
│   ├── TransferError        the KV path
│   │   ├── LinkDown         link_down               502     yes
│   │   ├── LinkStalled      link_stalled            504     yes
│   │   ├── ChunkCorrupt     chunk_corrupt           502     yes
│   │   ├── SegmentStale     segment_stale           502     yes
│   │   └── SegmentFailed    segment_failed          502     yes
│   └── StoreError           the store; requests go on without it
│       ├── StoreTimeout     store_timeout           503     yes
│       └── StoreUnavailable store_unavailable       503     yes
├── ConfigError              config_error            (start-up only)
└── InternalError            internal_error          500     a bug

Codes are never renamed; docs/errors.md lists them. Messages say what was wrong, where, what was
expected and what to do, and never hold a prompt, a header value or an address of another machine.
"""

from __future__ import annotations

from typing import ClassVar


class PrfaasError(Exception):
    """Root of the tree."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    is_retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        #: The field of the request that was wrong, as a path: `messages[2].content`.
        self.param = param
        #: Seconds after which a retry is worth while, at the earliest: the edge makes `Retry-After`
        #: of it, with up to as much again at random. None for a second, if it is retryable.
        self.retry_after_s = retry_after_s


class RequestError(PrfaasError):
    """The caller can change something."""

    code = "malformed_request"
    http_status = 400


class MalformedRequest(RequestError):
    """Not JSON, a wrong type, a value out of range, a missing field."""


class UnsupportedParameter(RequestError):
    """A known parameter of the OpenAI API that this service does not have."""

    code = "unsupported_parameter"


class ContextTooLong(RequestError):
    """Prompt and output do not fit the model's context."""

    code = "context_length_exceeded"


class UnknownModel(RequestError):
    """No worker serves this model."""

    code = "unknown_model"
    http_status = 404


class UnknownDecision(RequestError):
    """No decision record of this id is kept."""

    code = "unknown_decision"
    http_status = 404


class UnknownRoute(RequestError):
    """No such path."""

    code = "unknown_route"
    http_status = 404


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
    http_status = 405


class RequestTooLarge(RequestError):
    """The body is over the limit."""

    code = "request_too_large"
    http_status = 413


class RequestQuarantined(RequestError):
    """This very request has killed workers; it is not tried again for a while."""

    code = "request_quarantined"
    http_status = 422


class KeyInUse(RequestError):
    """A request with the same idempotency key is still running."""

    code = "idempotency_key_in_use"
    http_status = 409
    is_retryable = True


class KeyMismatch(RequestError):
    """The idempotency key was used for another request."""

    code = "idempotency_key_reused"
    http_status = 422


class ConflictingChange(RequestError):
    """A document was changed by somebody else meanwhile; read it again."""

    code = "conflicting_change"
    http_status = 409
    is_retryable = True


class ForeignPage(RequestError):
    """A browser sends a change for a page of another origin, or not as JSON."""

    code = "foreign_page"
    http_status = 403


class CapacityError(PrfaasError):
    """Nothing to run it on now."""

    code = "no_candidate"
    http_status = 503
    is_retryable = True


class Shed(CapacityError):
    """Refused for load."""

    code = "shed_overload"
    http_status = 429


class NoCandidate(CapacityError):
    """No worker can take it; reasons are counted in the message."""


class Draining(CapacityError):
    """This replica is leaving."""

    code = "draining"


class DeadlineExceeded(CapacityError):
    """The time the request was given is over."""

    code = "deadline_exceeded"
    http_status = 504


class PeerError(PrfaasError):
    """Another process failed."""

    code = "worker_lost"
    http_status = 503
    is_retryable = True


class WorkerLost(PeerError):
    """The connection to a worker broke, or it never came about."""


class WorkerUnreached(WorkerLost):
    """No connection to a worker came about: it has not seen the job, and cannot die of it."""


class WorkerRefused(PeerError):
    """A worker said no: full, draining, or not who we took it for."""

    code = "worker_refused"


class WorkerTimeout(PeerError):
    """A worker did not answer in time; the message names the phase."""

    code = "worker_timeout"
    http_status = 504


class RoleRefused(PeerError):
    """A worker does not change its role now."""

    code = "role_refused"
    http_status = 409
    is_retryable = False

    def __init__(
        self,
        message: str,
        *,
        reason: str = "role_busy",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        #: One of those that `controlplane.wire.RoleReply` lists; what the worker's answer says as code.
        self.reason = reason


class TransferError(PeerError):
    """KV could not be moved."""

    code = "link_down"
    http_status = 502


class LinkDown(TransferError):
    """No connection to the owner of the KV, or it broke."""


class LinkStalled(TransferError):
    """The owner of the KV sent less than the minimum in its time."""

    code = "link_stalled"
    http_status = 504


class ChunkCorrupt(TransferError):
    """A chunk's checksum, size or order did not match, twice."""

    code = "chunk_corrupt"


class SegmentStale(TransferError):
    """The owner no longer has this generation: lease over, or the process restarted."""

    code = "segment_stale"


class SegmentFailed(TransferError):
    """The prefill that was to fill the segment failed or was aborted."""

    code = "segment_failed"


class StoreError(PeerError):
    """The shared store failed; soft state only, so requests go on."""

    code = "store_unavailable"


class StoreTimeout(StoreError):
    """The store did not answer within its deadline."""

    code = "store_timeout"


class StoreUnavailable(StoreError):
    """No connection to the store, or its circuit breaker is open."""


class ConfigError(PrfaasError):
    """A configuration that cannot work; says file, field and what was expected."""

    code = "config_error"


class InternalError(PrfaasError):
    """A bug. The log line `internal.error` carries the story."""


#: Codes that a decode worker may report for the KV path, back to their classes.
TRANSFER_ERRORS: dict[str, type[TransferError]] = {
    kind.code: kind for kind in (LinkDown, LinkStalled, ChunkCorrupt, SegmentStale, SegmentFailed)
}


def error_for(code: str, message: str, *, retry_after_s: float | None = None) -> PrfaasError:
    """The error class of a code, built; `InternalError` for a code that nobody knows."""
    return _BY_CODE.get(code, InternalError)(message, retry_after_s=retry_after_s)


def _leaves(kind: type[PrfaasError]) -> list[type[PrfaasError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


_BY_CODE: dict[str, type[PrfaasError]] = {kind.code: kind for kind in _leaves(PrfaasError)}
