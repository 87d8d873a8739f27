"""The Lua files: packaged, described, and called by their digest."""

from __future__ import annotations

from importlib.resources import files

import pytest

from controlplane.store.scripts import BY_SHA, RESERVE

FILES = sorted(
    item.name
    for item in files("controlplane.store").joinpath("scripts").iterdir()
    if item.name.endswith(".lua") and item.name != "prelude.lua"
)


def test_every_file_is_a_script_that_is_loaded() -> None:
    assert len(FILES) == len(BY_SHA)


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_keys_arguments_result_atomicity_and_cost(name: str) -> None:
    text = files("controlplane.store").joinpath("scripts", name).read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]

    for word in ("-- KEYS ", "-- ARGV ", "-- Returns ", "-- Atomic, ", "-- Complexity: "):
        assert word in header


def test_a_call_in_full_has_the_same_keys_and_arguments() -> None:
    command = RESERVE.by_digest(["k1", "k2"], ["a", 1])

    assert command == ("EVALSHA", RESERVE.sha, 2, "k1", "k2", "a", 1)
    assert RESERVE.in_full(command) == ("EVAL", RESERVE.text, 2, "k1", "k2", "a", 1)
    assert BY_SHA[RESERVE.sha] is RESERVE
