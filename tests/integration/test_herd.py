"""Many requests with one prompt at the same time: its prefix is computed once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fleets import Fleet, a_fleet, get, parse_metrics, running

#: Ten seconds of computing if each request did its own, half a second if one does.
PROMPT = "the same long system prompt for everybody, " * 100
REQUESTS = 24
#: A hybrid model resumes where a snapshot of its state is: every fourth block of 64 tokens.
SNAPSHOT_TOKENS = 4 * 64


def computed_tokens(fleet: Fleet) -> float:
    """Prompt tokens that all prefill workers have computed."""
    names = ("east/prefill-0", "east/prefill-1", "west/prefill-0")
    key = 'prfaas_prompt_tokens_computed{phase="prefill"}'
    return sum(fleet.metrics(name)[key] for name in names)


def test_a_herd_computes_its_common_prefix_once(tmp_path: Path) -> None:
    """The first one computes it; the others wait, and then go on from its last snapshot."""
    with running(a_fleet(), tmp_path) as fleet, ThreadPoolExecutor(REQUESTS) as pool:
        answers = [
            pool.submit(fleet.complete, PROMPT + f"question {number:02}", max_tokens=2)
            for number in range(REQUESTS)
        ]
        statuses = {answer.result(60).status for answer in answers}

        computed = computed_tokens(fleet)
        metrics = parse_metrics(get(fleet.admin_url + "/metrics").body.decode())
        print(f"{REQUESTS} prompts of {len(PROMPT) + 11} tokens: {computed:.0f} computed")

        assert statuses == {200}
        assert metrics["prfaas_coalesced_total"] == REQUESTS - 1
        assert computed < len(PROMPT) + REQUESTS * SNAPSHOT_TOKENS
