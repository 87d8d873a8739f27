"""
Policies that run in the shadow of the live one: asked on the same view, recorded, never obeyed.

They answer on a thread of their own, behind the request, and none of what they do can fail or hold up
one: questions wait in a short queue and beyond it are skipped, together they get a small part of one
core, what they raise is their answer, and one that does not come back is stopped and asked no more.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import Full, Queue
from typing import Any, Final, Protocol, TypeAlias

from controlplane.domain.cluster import ClusterView
from controlplane.domain.decision import Decision, Placement, Prediction, RequestFeatures
from controlplane.observe.logs import get_logger
from controlplane.observe.metrics import RouterMetrics
from controlplane.router.asking import NamedPolicy, PolicyFault, ask

_log = get_logger()

#: Questions that wait; one more is skipped.
_WAITING_MAX: Final = 64
#: Part of one core that all shadows together get, and seconds of it that may be saved up.
_CORE_SHARE: Final = 0.1
_SAVED_S_MAX: Final = 0.5
#: A policy that takes longer for one answer hangs; a slow one takes milliseconds.
_HANG_S: Final = 0.25
#: Requests whose answers are kept until their record is written.
_KEPT_MAX: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowDecision:
    """What a shadow would have done; part of a record."""

    policy: str
    parameters: Mapping[str, Any]
    #: None when nothing can take the request, or the policy failed.
    placement: Placement | None = None
    #: It would have sent the request to the same two workers.
    is_same: bool = False
    reason: str = ""
    explanation: str = ""
    prediction: Prediction | None = None
    #: Why there is no answer: what it raised, or that it was skipped.
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One decision of the live policy, and what it was made of."""

    features: RequestFeatures
    view: ClusterView
    seed: int
    decision: Decision


#: Names a question: request and seed of its attempt.
_Key: TypeAlias = tuple[str, int]


class Runner(Protocol):
    """Runs what no request waits for."""

    def submit(self, work: Callable[[], None]) -> bool:
        """Run it soon; false when too much waits already."""

    def close(self) -> None:
        """Run nothing more."""


class Shadows:
    """The shadow policies of a router and their answers."""

    def __init__(
        self,
        metrics: RouterMetrics,
        runner: Runner,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.thread_time,
    ) -> None:
        """
        None yet.

        Args:
            metrics: Counts answers, faults and what was skipped.
            runner: Where they are asked.
            clock: Monotonic seconds.
            spent: Processor seconds of the calling thread.
        """
        self._metrics = metrics
        self._runner = runner
        self._clock = clock
        self._spent = spent
        self._policies: tuple[NamedPolicy, ...] = ()
        self._stopped: set[int] = set()
        self._answers: OrderedDict[_Key, list[ShadowDecision]] = OrderedDict()
        self._saved_s = _SAVED_S_MAX
        self._saved_at_s = clock()

    @property
    def policies(self) -> tuple[NamedPolicy, ...]:
        """Those that are asked."""
        return self._policies

    def use(self, policies: Sequence[NamedPolicy]) -> None:
        """Ask these from now on."""
        self._policies = tuple(policies)
        self._stopped.clear()

    def watch(self, question: Question) -> None:
        """Ask all shadows about one decision, behind the request."""
        if not self._policies:
            return
        answers: list[ShadowDecision] = []
        self._answers[question.features.request_id, question.seed] = answers
        if len(self._answers) > _KEPT_MAX:
            self._answers.popitem(last=False)
        for number, named in enumerate(self._policies):
            if number in self._stopped:
                self._answer(answers, named, fault="stopped: it did not answer in time")
            elif not self._may_run() or not self._runner.submit(
                _Errand(self, question, named, number, answers)
            ):
                self._answer(answers, named, fault="skipped: shadows have used up their time")

    def answers(self, request_id: str, seed: int) -> tuple[ShadowDecision, ...]:
        """What was answered so far about an attempt; given once."""
        return tuple(self._answers.pop((request_id, seed), ()))

    def close(self) -> None:
        """Ask no more."""
        self._policies = ()
        self._runner.close()

    def perform(
        self, question: Question, named: NamedPolicy, number: int, answers: list[ShadowDecision]
    ) -> None:
        """Ask one; on the runner's thread."""
        if number in self._stopped:
            return
        began_s = self._spent()
        try:
            decision = ask(named.policy, question.features, question.view, question.seed)
        except PolicyFault as fault:
            self._answer(answers, named, fault=str(fault))
        except _Stopped:
            self._stopped.add(number)
            self._answer(answers, named, fault="stopped: it did not answer in time")
            _log.error("shadow.stopped", policy=named.policy.name)
        else:
            self._answer(answers, named, decision=decision, live=question.decision)
        finally:
            self._saved_s -= self._spent() - began_s

    def _may_run(self) -> bool:
        now_s = self._clock()
        self._saved_s = min(_SAVED_S_MAX, self._saved_s + (now_s - self._saved_at_s) * _CORE_SHARE)
        self._saved_at_s = now_s
        return self._saved_s > 0

    def _answer(
        self,
        answers: list[ShadowDecision],
        named: NamedPolicy,
        *,
        decision: Decision | None = None,
        live: Decision | None = None,
        fault: str | None = None,
    ) -> None:
        is_same = decision is not None and live is not None and decision.placement == live.placement
        said = "fault" if decision is None else "same" if is_same else "other"
        self._metrics.shadow_decisions_total.labels(named.policy.name, said).inc()
        answers.append(
            ShadowDecision(
                policy=named.policy.name,
                parameters=named.parameters,
                placement=decision.placement if decision else None,
                is_same=is_same,
                reason=decision.reason if decision else "",
                explanation=decision.explanation if decision else "",
                prediction=decision.prediction if decision else None,
                fault=fault,
            )
        )


class _Stopped(BaseException):
    """Thrown into a policy that hangs; no policy's `except Exception` stops it."""


@dataclass(frozen=True, slots=True)
class _Errand:
    """One question to one shadow."""

    shadows: Shadows
    question: Question
    named: NamedPolicy
    number: int
    answers: list[ShadowDecision]

    def __call__(self) -> None:
        self.shadows.perform(self.question, self.named, self.number, self.answers)


class InlineRunner:
    """Runs it at once: for simulations and tests, whose policies are known to come back."""

    def submit(self, work: Callable[[], None]) -> bool:
        """Run it now."""
        work()
        return True

    def close(self) -> None:
        """Nothing is kept."""


class ThreadRunner:
    """One thread, and a second one that stops what hangs there. Started with the first errand."""

    def __init__(self, *, hang_s: float = _HANG_S) -> None:
        """
        Run nothing yet.

        Args:
            hang_s: An errand that takes longer is stopped.
        """
        self._hang_s = hang_s
        self._waiting: Queue[Callable[[], None] | None] = Queue(_WAITING_MAX)
        self._thread: threading.Thread | None = None
        self._began_s: float | None = None
        self._turn = threading.Lock()
        self._is_closed = threading.Event()

    def submit(self, work: Callable[[], None]) -> bool:
        """Run it when its turn comes; false when the queue is full."""
        if self._is_closed.is_set():
            return False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shadows", daemon=True)
            self._thread.start()
            threading.Thread(target=self._guard, name="shadow-guard", daemon=True).start()
        try:
            self._waiting.put_nowait(work)
        except Full:
            return False
        return True

    def close(self) -> None:
        """Take nothing more; both threads end within a moment, or with the process."""
        self._is_closed.set()
        try:
            self._waiting.put_nowait(None)
        except Full:
            return

    def _work(self) -> None:
        while not self._is_closed.is_set():
            try:
                self._do(self._waiting.get())
            except _Stopped:
                # It was thrown as its errand ended by itself.
                continue

    def _do(self, work: Callable[[], None] | None) -> None:
        if work is None:
            return
        with self._turn:
            self._began_s = time.monotonic()
        try:
            work()
        finally:
            with self._turn:
                self._began_s = None

    def _guard(self) -> None:
        """Throw `_Stopped` into an errand that hangs; it would take the interpreter's lock for ever."""
        while not self._is_closed.wait(self._hang_s / 2):
            with self._turn:
                began_s, thread = self._began_s, self._thread
                is_hanging = began_s is not None and time.monotonic() - began_s > self._hang_s
                if is_hanging and thread is not None and thread.ident is not None:
                    self._began_s = time.monotonic()
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(thread.ident), ctypes.py_object(_Stopped)
                    )
