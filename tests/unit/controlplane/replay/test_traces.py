"""Reading traces: what is in them, and what is refused with file, line, field and expectation."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from controlplane.replay.traces.lines import TraceError
from controlplane.replay.traces.opening import open_trace
from controlplane.replay.traces.request import TraceRequest

ROW = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(path: Path, *rows: object) -> str:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return str(path)


def read(spec: str, seed: int = 0) -> list[TraceRequest]:
    return list(open_trace(spec).requests(seed))


def test_a_mooncake_trace_has_times_lengths_and_blocks(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.jsonl", ROW, ROW | {"timestamp": 1500, "hash_ids": [1, 3]})
    assert read(spec) == [
        TraceRequest(0.0, 600, 5, (1, 2)),
        TraceRequest(1.5, 600, 5, (1, 3)),
    ]


def test_times_are_counted_from_the_first_request(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.jsonl", ROW | {"timestamp": 7000}, ROW | {"timestamp": 8000})
    assert [row.at_s for row in read(spec)] == [0.0, 1.0]


def test_requests_of_one_instant_are_spread_up_to_the_next(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.jsonl", *[ROW] * 50, ROW | {"timestamp": 3000})
    times_s = [row.at_s for row in read(spec)]
    assert times_s == sorted(times_s)
    assert 0 < times_s[0] < 0.5
    assert 2.5 < times_s[49] < 3.0
    assert times_s[50] == 3.0


def test_spreading_is_drawn_by_the_seed(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.jsonl", *[ROW] * 5, ROW | {"timestamp": 3000})
    assert read(spec, 1) == read(spec, 1)
    assert read(spec, 1) != read(spec, 2)


def test_a_compressed_trace_is_read_as_it_is(tmp_path: Path) -> None:
    plain = written(tmp_path / "t.jsonl", ROW)
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    assert read(str(packed)) == read(plain)


def test_an_azure_trace_has_times_and_lengths_but_no_blocks(tmp_path: Path) -> None:
    text = (
        AZURE + "2023-11-16 18:15:46.6805900,374,44\r\n" + "2023-11-16 18:15:50.9951690,396,109\r\n"
    )
    (tmp_path / "a.csv").write_text(text)
    first, second = read(str(tmp_path / "a.csv"))
    assert first == TraceRequest(0.0, 374, 44)
    assert second.at_s == pytest.approx(4.314579, abs=1e-6)


def test_our_own_records_are_a_trace(tmp_path: Path) -> None:
    record = {
        "decision_id": "dec-1",
        "at": 1000.0,
        "attempts": [{"features": {"input_tokens": 40, "output_tokens_max": 9}}],
        "report": {"output_tokens": 3},
    }
    refused = {"decision_id": "dec-2", "at": 1001.0, "attempts": [], "report": None}
    spec = written(tmp_path / "r.jsonl", record, refused, record | {"at": 1002.5, "report": None})
    assert read(spec) == [TraceRequest(0.0, 40, 3), TraceRequest(2.5, 40, 9)]


def test_a_synthetic_trace_has_the_papers_mean_length() -> None:
    rows = read("synthetic:rate=3,requests=20000")
    mean = sum(row.input_tokens for row in rows) / len(rows)
    assert mean == pytest.approx(27_300, rel=0.02)
    assert rows[-1].at_s == pytest.approx(20_000 / 3, rel=0.03)
    assert all(128 <= row.input_tokens <= 128_000 for row in rows)


def test_a_burst_multiplies_the_rate_for_a_while() -> None:
    rows = read("synthetic:rate=2,requests=5000,burst=10,burst_at=100,burst_s=30")
    within = sum(100 <= row.at_s < 130 for row in rows)
    before = sum(row.at_s < 100 for row in rows)
    assert within == pytest.approx(600, rel=0.15)
    assert before == pytest.approx(200, rel=0.25)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"timestamp": -1}, "timestamp: expected a time from 0"),
        ({"timestamp": "now"}, "timestamp: expected milliseconds"),
        ({"timestamp": 1e18}, "timestamp: expected a time from 0"),
        ({"input_length": 0}, "input_length: expected a whole number from 1"),
        ({"input_length": -600}, "input_length: expected a whole number from 1"),
        ({"input_length": 600.5}, "input_length: expected a whole number"),
        ({"input_length": 1 << 40}, "input_length: expected a whole number"),
        ({"output_length": None}, "output_length: expected a whole number"),
        ({"output_length": True}, "output_length: expected a whole number"),
        ({"hash_ids": [1]}, "hash_ids: expected 2 block ids"),
        ({"hash_ids": [1, -2]}, "hash_ids: expected whole numbers >= 0"),
        ({"hash_ids": 7}, "hash_ids: expected a list"),
    ],
)
def test_a_wrong_field_is_refused_with_file_line_and_expectation(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    spec = written(tmp_path / "bad.jsonl", ROW, ROW, ROW | change)
    with pytest.raises(TraceError) as refused:
        read(spec)
    assert f"{spec}, line 3, {said}" in refused.value.message


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ROW.items() if key != name}


@pytest.mark.parametrize("name", sorted(ROW))
def test_a_missing_field_is_refused(tmp_path: Path, name: str) -> None:
    spec = written(tmp_path / "bad.jsonl", ROW, without(name))
    with pytest.raises(TraceError, match=f"line 2, {name}: expected"):
        read(spec)


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"timestamp": 1,', "\x00"])
def test_a_broken_line_is_refused(tmp_path: Path, line: str) -> None:
    spec = written(tmp_path / "bad.jsonl", ROW, line)
    with pytest.raises(TraceError, match="line 2, the line: expected a JSON object"):
        read(spec)


def test_unsorted_times_are_refused(tmp_path: Path) -> None:
    spec = written(tmp_path / "bad.jsonl", ROW | {"timestamp": 5000}, ROW | {"timestamp": 4999})
    with pytest.raises(
        TraceError, match="line 2, timestamp: expected times in order, this one at 5 s"
    ):
        read(spec)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2023-11-16 18:15:47.0,10", "line 3, the line: expected 3 fields"),
        ("yesterday,10,10", "line 3, TIMESTAMP: expected a time like"),
        ("2023-11-16 18:15:45.0,10,10", "line 3, TIMESTAMP: expected times in order"),
        ("2023-11-16 18:15:47.0,-3,10", "line 3, ContextTokens: expected a whole number from 1"),
        ("2023-11-16 18:15:47.0,10,many", "line 3, GeneratedTokens: expected a whole number"),
    ],
)
def test_a_wrong_line_of_csv_is_refused(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.csv").write_text(f"{AZURE}2023-11-16 18:15:46.0,1,1\n{line}\n")
    with pytest.raises(TraceError, match=said):
        read(str(tmp_path / "a.csv"))


def test_another_csv_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c\n")
    with pytest.raises(TraceError, match="line 1, the header: expected TIMESTAMP,ContextTokens"):
        read(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("synthetic:rates=3", "unknown name 'rates'; known are"),
        ("synthetic:rate=-3", "rate: expected a number from"),
        ("synthetic:rate=fast", "rate: expected a number from"),
        ("synthetic:rate=nan", "rate: expected a number from"),
        ("synthetic:requests=2.5", "requests: expected a whole number"),
        ("synthetic:input_min=9,input_max=8", "input_min=9 is over input_max=8"),
    ],
)
def test_a_wrong_specification_is_refused(spec: str, said: str) -> None:
    with pytest.raises(TraceError, match=said):
        read(spec)


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(ROW).encode() * 50)[:40])
    with pytest.raises(TraceError, match="cannot read the trace"):
        read(str(packed))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is empty"):
        read(written(tmp_path / "none.jsonl"))


def test_a_long_trace_is_read_as_it_is_needed(tmp_path: Path) -> None:
    spec = written(tmp_path / "t.jsonl", ROW, ROW | {"timestamp": 1}, "broken")
    assert len(list(islice(open_trace(spec).requests(0), 1))) == 1


SHARED = Path(__file__).parents[5] / "shared" / "traces"


@pytest.mark.parametrize(
    ("name", "rows", "mean_input"),
    [
        ("mooncake_fast25_conversation_trace.jsonl.gz", 12_031, 12_035),
        ("mooncake_fast25_synthetic_trace.jsonl.gz", 3_993, 15_326),
        ("azure2023_conv.csv.gz", 19_366, 1_155),
    ],
)
def test_the_public_traces_are_read_whole(name: str, rows: int, mean_input: float) -> None:
    if not (SHARED / name).exists():
        pytest.skip("the public traces are not on this machine")
    found = read(str(SHARED / name))
    assert len(found) == rows
    assert sum(row.input_tokens for row in found) / rows == pytest.approx(mean_input, abs=1)
