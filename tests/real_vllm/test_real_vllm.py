"""Two real vLLM servers, a router before them: KV crosses a shaped link, and tokens stay the same."""

from __future__ import annotations

import http.client
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleets import Answer, wait_for

from controlplane.profilefile import load_profile
from real_vllm.both import COMPUTED, EXTERNAL, MOVED, MOVING, Both, both_sites, some_ids
from real_vllm.servers import DENSE_BYTES_PER_TOKEN, MODEL

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """Two servers of the dense model, over the shaped link."""
    config = {"bytes_per_token": DENSE_BYTES_PER_TOKEN}
    with both_sites("dense", tmp_path_factory.mktemp("dense"), **config) as both:
        yield both


def streamed(answer: Answer) -> str:
    """The text of a stream."""
    events = [
        json.loads(line.removeprefix("data: "))
        for line in answer.body.decode().splitlines()
        if line.startswith("data: {")
    ]
    choices = [event["choices"][0] for event in events if event["choices"]]
    return "".join(one.get("text") or one.get("delta", {}).get("content", "") for one in choices)


QUESTION = "Explain why prefill in 東京 and decode near the user share one KV cache. " * 12


def test_a_completion_over_the_link_is_that_of_one_server_token_for_token(dense: Both) -> None:
    for count in (3, 127, 128, 129, 700, 2000):
        ids = some_ids(count, seed=count)
        alone = dense.west.ask(
            "/v1/completions", prompt=ids, temperature=0, max_tokens=24, cache_salt="alone"
        )

        answer = dense.complete(prompt=ids)

        assert answer.status == 200, answer
        dense.decoder(answer)
        assert answer.json()["choices"][0]["text"] == alone.json()["choices"][0]["text"], count


def test_the_router_finds_a_prefix_that_the_servers_own_events_told_of(dense: Both) -> None:
    ids = some_ids(700, seed=41)
    assert dense.complete(prompt=ids).status == 200
    decisions = []

    def is_found() -> bool:
        time.sleep(1)
        # Longer each time: the same prompt again would be told of by its own answer.
        answer = dense.complete(prompt=[*ids, *some_ids(len(decisions) + 1, seed=len(decisions))])
        decisions.append(dense.fleet.record(answer)["attempts"][0]["decision"])
        return any(one["held_tokens"] == 640 for one in decisions[-1]["candidates"])

    wait_for(is_found, 30)
    assert not any(one["is_held_guessed"] for one in decisions[-1]["candidates"])


def test_a_profile_has_the_bytes_that_crossed_and_times_that_grow(
    dense: Both, tmp_path: Path
) -> None:
    out = tmp_path / "dense.toml"
    prfaas = Path(sys.executable).with_name("prfaas")
    quick = [
        "--lengths",
        "512,1024,2048",
        "--batch-max",
        "2",
        "--runs-max",
        "6",
        "--tolerance",
        "1",
    ]

    done = subprocess.run(
        [prfaas, "profile", dense.east.url, "--decode-url", dense.west.url, "--out", out, *quick],
        timeout=300,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    found = load_profile(out.name, beside=tmp_path)
    assert found.model is not None
    assert found.model.kv_bytes_per_token == pytest.approx(DENSE_BYTES_PER_TOKEN, rel=0.05)
    assert found.prefill is not None
    times_s = dict(found.prefill.table)
    assert times_s[2048] > 1.5 * times_s[512]


def test_a_chat_over_the_link_is_that_of_one_server_streamed_or_not(dense: Both) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": QUESTION}]
    alone = dense.west.ask(
        "/v1/chat/completions",
        messages=messages,
        temperature=0,
        max_tokens=24,
        cache_salt="alone",
    ).json()

    whole = dense.chat(messages=messages)
    stream = dense.chat(messages=messages, stream=True)

    expected = alone["choices"][0]["message"]["content"]
    assert whole.json()["choices"][0]["message"]["content"] == expected
    assert streamed(stream) == expected
    assert whole.json()["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"], "template"


def test_the_prompt_came_from_outside_by_the_decode_servers_own_count(dense: Both) -> None:
    before = dense.counts(EXTERNAL, COMPUTED)

    answer = dense.complete(prompt=some_ids(1500, seed=31))

    server = dense.decoder(answer)
    external, computed = before[id(server)]
    assert server.metric(EXTERNAL) - external == 1500
    assert server.metric(COMPUTED) == computed
    report = dense.fleet.record(answer)["report"]
    assert report["transfer"]["evidence"] == "counted"
    assert report["prompt_tokens_computed"] == 1


def test_predicted_bytes_and_seconds_are_those_that_the_engine_counts(dense: Both) -> None:
    # The first transfer between two engines shakes hands.
    for seed in (39, 40):
        dense.complete(prompt=some_ids(3900, seed=seed), max_tokens=1)
    seconds = []
    for seed in (41, 42, 43):
        before = dense.counts(MOVED, MOVING)

        answer = dense.complete(prompt=some_ids(3900, seed=seed), max_tokens=1)

        server = dense.decoder(answer)
        moved_before, moving_before = before[id(server)]
        moved = server.metric(MOVED) - moved_before
        prediction = dense.fleet.record(answer)["attempts"][-1]["decision"]["prediction"]
        assert prediction["transfer_bytes"] == pytest.approx(moved, rel=0.05)
        seconds.append((server.metric(MOVING) - moving_before) / prediction["transfer_s"])
    print(f"seconds, counted / predicted: {[round(one, 3) for one in seconds]}")
    if dense.east.site.inside:
        assert statistics.median(seconds) == pytest.approx(1, rel=0.25)


def test_a_client_that_leaves_is_told_to_both_servers(dense: Both) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", dense.fleet.config.router.port, timeout=30)
    asked = {"model": MODEL, "prompt": some_ids(600, 50), "max_tokens": 3000, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(asked | {"temperature": 0}))
    connection.getresponse().read(200)

    connection.close()

    def is_idle() -> bool:
        time.sleep(0.1)
        return not any(
            server.metric("vllm:num_requests_running") for server in (dense.east, dense.west)
        )

    wait_for(is_idle, 10)


def test_a_killed_prefill_server_costs_no_request(dense: Both) -> None:
    dense.east.kill()
    try:
        answers = [dense.complete(prompt=some_ids(400, seed)) for seed in range(60, 66)]

        assert [answer.status for answer in answers] == [200] * 6, (
            [answer.body for answer in answers],
            dense.fleet.log[-60:],
        )
        assert answers[-1].headers["x-prfaas-prefill"].startswith("west/")
    finally:
        dense.east.start()
        dense.east.wait_ready()
    seeds = itertools.count(70)
    try:
        wait_for(lambda: _prefills_in_east(dense, seeds), 30)
    except AssertionError:
        print("\n".join(dense.fleet.log[-60:]))
        raise


def _prefills_in_east(dense: Both, seeds: Iterator[int]) -> bool:
    time.sleep(0.5)
    answer = dense.complete(prompt=some_ids(200, next(seeds)))
    return answer.status == 200 and answer.headers["x-prfaas-prefill"].startswith("east/")


def test_a_stream_goes_on_when_its_decode_server_is_killed(dense: Both) -> None:
    ids = some_ids(500, seed=80)
    alone = dense.east.ask(
        "/v1/completions", prompt=ids, temperature=0, max_tokens=400, cache_salt="alone"
    )
    connection = http.client.HTTPConnection("127.0.0.1", dense.fleet.config.router.port, timeout=60)
    asked = {"model": MODEL, "prompt": ids, "max_tokens": 400, "stream": True, "temperature": 0}
    connection.request("POST", "/v1/completions", json.dumps(asked))
    response = connection.getresponse()
    begun = response.read(2000)

    dense.west.kill()
    try:
        body = begun + response.read()
        again = dense.complete(prompt=some_ids(300, seed=81))
    finally:
        connection.close()
        dense.west.start()
        dense.west.wait_ready()

    assert b"data: [DONE]" in body, body[-500:]
    text = streamed(Answer(200, {}, body))
    assert text == alone.json()["choices"][0]["text"]
    assert again.status == 200
    # Tests run in any order: the next one finds both sites well.
    seeds = itertools.count(900)
    wait_for(lambda: all(_crosses(dense, seeds) for _ in range(3)), 60)


def _crosses(dense: Both, seeds: Iterator[int]) -> bool:
    time.sleep(0.5)
    answer = dense.complete(prompt=some_ids(200, next(seeds)), max_tokens=1)
    sites = [
        answer.headers.get(f"x-prfaas-{role}", "").partition("/")[0]
        for role in ("prefill", "decode")
    ]
    return sorted(sites) == ["east", "west"]
