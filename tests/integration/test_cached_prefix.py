"""What the decode side holds already does not cross the link again."""

from __future__ import annotations

from pathlib import Path

from fleets import Answer, Fleet, a_fleet, running, wait_for


def test_a_fully_cached_prefix_moves_nothing_but_the_state(tmp_path: Path) -> None:
    """129 tokens: two full blocks are prefilled, and the decoder keeps them for the next time."""
    with running(a_fleet(west_prefill=0, threshold_tokens=0), tmp_path) as fleet:
        prompt = "fully cached " * 9 + "fully cached"
        assert len(prompt) == 129
        first = fleet.complete(prompt)

        second = wait_for(lambda: ask_again(fleet, prompt), 10)
        transfer = fleet.record(second)["report"]["transfer"]
        view = fleet.record(second)["attempts"][-1]["view"]["workers"][0]

        assert fleet.record(first)["report"]["transfer"]["held_tokens"] == 0
        assert transfer["held_tokens"] == 128
        assert transfer["bytes"] == view["kv_state_bytes"]
        assert second.json()["choices"] == first.json()["choices"]


def ask_again(fleet: Fleet, prompt: str) -> Answer | None:
    """The answer of a decoder that was known to hold the prompt."""
    answer = fleet.complete(prompt)
    hits = fleet.record(answer)["attempts"][-1]["features"]["prefix_hits"]
    return answer if answer.headers["x-prfaas-decode"] in hits else None
