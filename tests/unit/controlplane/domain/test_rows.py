from __future__ import annotations

from builders import a_worker
from hypothesis import given
from hypothesis import strategies as st

from controlplane.domain.rows import Roll, Row

WORKERS = {f"{number:03}": a_worker(f"west/p{number:03}") for number in range(150)}


@given(st.lists(st.sampled_from(sorted(WORKERS)), max_size=400))
def test_a_roll_is_in_order_whoever_comes_and_goes(keys: list[str]) -> None:
    """A key that is there goes, one that is not comes."""
    roll: Roll[str] = Roll()
    there: set[str] = set()
    for key in keys:
        if key in there:
            roll.drop(key)
        else:
            roll.put(key, WORKERS[key])
        there ^= {key}

    row, expected = roll.row(), tuple(WORKERS[key] for key in sorted(there))
    assert row == expected
    assert roll.is_empty == (not there)
    assert [row[at] for at in range(len(row))] == list(expected)
    assert row[3:70] == expected[3:70]
    assert row[-2:] == expected[-2:]


def test_a_row_stays_as_it_was_when_the_roll_changes() -> None:
    roll: Roll[str] = Roll()
    for key, worker in WORKERS.items():
        roll.put(key, worker)
    before = roll.row()

    roll.drop("007")
    roll.swap("008", WORKERS["009"])

    assert before == tuple(WORKERS.values())
    assert roll.row()[7] is WORKERS["009"]


def test_rows_of_equal_workers_are_equal_whatever_their_parts() -> None:
    one, two, three = list(WORKERS.values())[:3]

    assert Row(((one,), (two, three))) == Row(((one, two, three),))
    assert Row(((one, two),)) != Row(((two, one),))


@given(st.integers(0, 150))
def test_workers_up_to_a_key_are_counted(count: int) -> None:
    roll: Roll[str] = Roll()
    for key, worker in WORKERS.items():
        roll.put(key, worker)

    found = roll.row().up_to(f"west/p{count - 1:03}", lambda worker: worker.worker_id)

    assert found == count
