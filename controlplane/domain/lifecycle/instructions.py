"""What a request's life asks its dispatcher to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from controlplane.domain.health import Outcome
from controlplane.domain.lifecycle.state import State


@dataclass(frozen=True, slots=True)
class AwaitTurn:
    """Wait while another request computes a long part of this one's prefix."""


@dataclass(frozen=True, slots=True)
class Decide:
    """Ask the policy, without the workers that have failed this request."""

    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reserve:
    """Claim capacity for the placement."""


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Send the prefill job."""


@dataclass(frozen=True, slots=True)
class StartDecode:
    """Send the decode job with the KV location and wait for the first output."""


@dataclass(frozen=True, slots=True)
class Relay:
    """Copy the stream to the client until it ends."""


@dataclass(frozen=True, slots=True)
class AbortDecode:
    """Close the decode worker's stream: it stops and frees its KV."""


@dataclass(frozen=True, slots=True)
class AbortPrefill:
    """Tell the prefill worker to stop and free the segment."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Release the reservation of an attempt that is over; the last one goes with `Finish`."""


@dataclass(frozen=True, slots=True)
class Judge:
    """Tell the view what a worker of this attempt did."""

    worker_id: str
    kind: Outcome


@dataclass(frozen=True, slots=True)
class Blame:
    """A worker broke off: if its process has died, note what it was running."""

    worker_id: str
    #: It has said itself that it hangs: nobody need look whether it has died.
    is_certain: bool = False


@dataclass(frozen=True, slots=True)
class ForgetOutput:
    """The client has seen nothing of the output, and it cannot be resumed: begin it anew."""


@dataclass(frozen=True, slots=True)
class AskRetry:
    """Ask the retry budget for another attempt."""

    #: What the request fails with when there is none.
    code: str
    #: Everyone was tried: give them a moment before the next round.
    after_pause: bool = False


@dataclass(frozen=True, slots=True)
class Fail:
    """Tell the client: a status before the first token, an error event after it."""

    code: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Release what is held and complete the decision record. Exactly once, and last."""

    state: State
    code: str


Instruction: TypeAlias = (
    AwaitTurn
    | Decide
    | Reserve
    | StartPrefill
    | StartDecode
    | Relay
    | AbortDecode
    | AbortPrefill
    | GiveBack
    | Judge
    | Blame
    | ForgetOutput
    | AskRetry
    | Fail
    | Finish
)
