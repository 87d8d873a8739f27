"""When a worker is suspected, ejected, forgiven and needed; and how it warms up."""

from __future__ import annotations

import pytest

from controlplane.domain.health import (
    UNKNOWN,
    Health,
    HealthRules,
    Outcome,
    WorkerState,
    after,
    deserves_ejection,
    ejected,
    is_panic,
    may_eject,
    state_of,
    suspected,
    warm_share,
)

RULES = HealthRules()
NOW_S = 1000.0


def seen(*outcomes: Outcome, health: Health = UNKNOWN, now_s: float = NOW_S) -> Health:
    """What these outcomes, all at one time, make of a worker."""
    for outcome in outcomes:
        health = after(health, outcome, now_s, RULES)
    return health


def out(health: Health, *, now_s: float = NOW_S, chance: float = 0.5) -> Health:
    """The worker put out; by default neither longer nor shorter than usual."""
    return ejected(health, now_s, RULES, chance=chance)


def state(health: Health, *, now_s: float = NOW_S, **overrides: object) -> WorkerState:
    """The word for a worker that is grown up and heard."""
    values = {"silence_s": 0.0, "share": 1.0, "is_draining": False, **overrides}
    return state_of(health, now_s=now_s, rules=RULES, **values)  # type: ignore[arg-type]


# --- Suspicion -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        ("ok", "healthy"),
        ("lost", "suspect"),
        ("timeout", "suspect"),
        ("stalled", "suspect"),
        ("refused", "healthy"),
        ("corrupt", "healthy"),
    ],
)
def test_what_makes_a_suspect(outcome: Outcome, word: WorkerState) -> None:
    """A worker that says no, or whose bytes were damaged, is there all the same."""
    assert state(seen(outcome)) == word


def test_suspicion_lasts_its_time_and_no_longer() -> None:
    health = seen("lost")

    assert state(health, now_s=NOW_S + 1.9) == "suspect"
    assert state(health, now_s=NOW_S + 2.0) == "healthy"


def test_a_success_elsewhere_does_not_end_suspicion() -> None:
    """An old stream may go on at a worker that takes no new connections."""
    assert state(seen("lost", "ok")) == "suspect"


def test_anybody_may_doubt_a_worker() -> None:
    health = suspected(UNKNOWN, NOW_S, RULES)

    assert state(health) == "suspect"
    assert not deserves_ejection(health, NOW_S, RULES)


@pytest.mark.parametrize(("silence_s", "word"), [(1.99, "healthy"), (2.0, "suspect")])
def test_silence_makes_a_suspect(silence_s: float, word: WorkerState) -> None:
    assert state(UNKNOWN, silence_s=silence_s) == word


# --- Ejection --------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["lost", "timeout", "stalled"])
def test_five_failures_in_a_row_eject(failure: Outcome) -> None:
    assert not deserves_ejection(seen(*[failure] * 4), NOW_S, RULES)
    assert deserves_ejection(seen(*[failure] * 5), NOW_S, RULES)


def test_a_success_ends_a_row() -> None:
    health = seen("lost", "lost", "lost", "lost", "ok", "lost")

    assert not deserves_ejection(health, NOW_S, RULES)


def test_refusals_never_eject() -> None:
    """A fleet that is full would eject itself."""
    assert seen(*["refused"] * 1000) == UNKNOWN


def test_half_of_ten_failed_requests_eject() -> None:
    mixed: list[Outcome] = ["ok", "lost"] * 5

    assert not deserves_ejection(seen(*mixed[:9]), NOW_S, RULES)
    assert deserves_ejection(seen(*mixed), NOW_S, RULES)
    assert not deserves_ejection(seen(*mixed, "ok"), NOW_S, RULES)


def test_failures_before_the_window_do_not_count() -> None:
    old = seen(*["ok", "lost"] * 4)

    recent = seen("ok", "lost", health=old, now_s=NOW_S + 4)
    late = seen("ok", "lost", health=old, now_s=NOW_S + 10)

    assert deserves_ejection(recent, NOW_S + 4, RULES)
    assert not deserves_ejection(late, NOW_S + 10, RULES)


def test_the_window_moves_on_by_halves() -> None:
    old = seen(*["ok", "lost"] * 4)

    adjacent = seen("ok", "lost", health=old, now_s=NOW_S + 6)

    assert deserves_ejection(adjacent, NOW_S + 6, RULES)
    assert not deserves_ejection(adjacent, NOW_S + 11, RULES)


def test_three_corrupt_transfers_eject_their_source() -> None:
    assert not deserves_ejection(seen("corrupt", "ok", "corrupt", "ok"), NOW_S, RULES)
    assert deserves_ejection(seen("corrupt", "ok", "corrupt", "ok", "corrupt"), NOW_S, RULES)


def test_one_that_is_out_is_not_put_out_again() -> None:
    """Requests that were there before go on failing."""
    health = seen(*["lost"] * 9, health=out(seen(*["lost"] * 5)))

    assert not deserves_ejection(health, NOW_S, RULES)


def test_each_time_out_is_twice_as_long_up_to_a_bound() -> None:
    health, lengths = UNKNOWN, []
    for _ in range(7):
        health = out(health)
        lengths.append(health.ejected_until_s - NOW_S)

    assert lengths == [10, 20, 40, 80, 160, 300, 300]


def test_a_thousand_times_out_overflow_nothing() -> None:
    health = Health(ejections=5000)

    assert out(health).ejected_until_s == NOW_S + 300


@pytest.mark.parametrize(("chance", "length_s"), [(0.0, 8.0), (0.5, 10.0), (0.999999, 12.0)])
def test_times_out_differ_by_chance(chance: float, length_s: float) -> None:
    """Or all routers would try the worker at the same moment."""
    assert out(UNKNOWN, chance=chance).ejected_until_s - NOW_S == pytest.approx(length_s, abs=1e-3)


def test_a_worker_that_is_out_is_ejected_until_its_time_is_over() -> None:
    health = out(seen(*["lost"] * 5))

    assert state(health, now_s=NOW_S + 9.9) == "ejected"
    assert state(health, now_s=NOW_S + 10) == "healthy"


def test_a_worker_that_was_well_for_as_long_as_it_was_out_starts_from_the_base() -> None:
    health = out(out(UNKNOWN))

    soon = seen("ok", health=health, now_s=NOW_S + 39)
    late = seen("ok", health=health, now_s=NOW_S + 40)

    assert (soon.ejections, late.ejections) == (2, 0)


@pytest.mark.parametrize(
    ("workers", "already", "may"),
    [
        pytest.param(1, 0, True, id="one always may"),
        pytest.param(2, 1, False, id="one of two is enough"),
        pytest.param(3, 1, False, id="a third of three"),
        pytest.param(6, 1, True, id="a third of six is two"),
        pytest.param(6, 2, False, id="and not three"),
    ],
)
def test_at_most_a_third_of_a_pool_is_out(workers: int, already: int, may: bool) -> None:  # noqa: FBT001 - a table
    assert may_eject(workers, already, RULES) == may


# --- Panic, youth, words ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "available", "panics"),
    [(4, 4, False), (4, 2, False), (4, 1, True), (2, 1, False), (1, 0, True), (0, 0, False)],
)
def test_with_less_than_half_available_doubt_is_the_likelier_error(
    workers: int,
    available: int,
    panics: bool,  # noqa: FBT001 - a table
) -> None:
    assert is_panic(workers, available, RULES) == panics


@pytest.mark.parametrize(
    ("age_s", "share"),
    [(None, 1.0), (0.0, 0.1), (-5.0, 0.1), (5.0, 0.5), (9.99, 0.9), (10.0, 1.0), (1e308, 1.0)],
)
def test_a_new_worker_takes_a_growing_part(age_s: float | None, share: float) -> None:
    """One that does not tell its age is old; an absurd age is no worse."""
    assert warm_share(age_s, RULES) == pytest.approx(share)


def test_the_share_of_a_new_worker_never_falls() -> None:
    shares = [warm_share(tenth / 10, RULES) for tenth in range(110)]

    assert shares == sorted(shares)
    assert len(set(shares)) == 10


@pytest.mark.parametrize(
    ("health", "overrides", "word"),
    [
        (UNKNOWN, {}, "healthy"),
        (UNKNOWN, {"share": 0.5}, "warming"),
        (seen("lost"), {"share": 0.5}, "suspect"),
        (out(seen("lost")), {"share": 0.5}, "ejected"),
        (seen("lost", health=out(UNKNOWN)), {}, "ejected"),
        (out(UNKNOWN), {"is_draining": True}, "draining"),
    ],
)
def test_the_gravest_word_is_said(
    health: Health, overrides: dict[str, object], word: WorkerState
) -> None:
    assert state(health, **overrides) == word
