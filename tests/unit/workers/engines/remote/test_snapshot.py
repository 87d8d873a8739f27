"""Metrics of a server as numbers."""

from __future__ import annotations

import pytest

from workers.engines.remote.snapshot import PromptSources, vllm_snapshot

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a \\"tiny\\" {one}"} 3.0
vllm:num_requests_running{engine="1",model_name="a \\"tiny\\" {one}"} 1.0
vllm:num_requests_waiting{engine="0"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",reason="deferred"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:num_preemptions_total{engine="0"} 7.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 10.0
vllm:prompt_tokens_by_source_total{engine="1",source="local_compute"} 1.0
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 20.0
vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer"} 30.0
vllm:nixl_bytes_transferred_sum{engine="0"} 2.097152e+06
vllm:nixl_bytes_transferred_bucket{engine="0",le="+Inf"} 1.0
vllm:nixl_xfer_time_seconds_sum{engine="0"} 0.5
vllm:cache_config_info{block_size="128",num_gpu_blocks="256"} 1.0
process_start_time_seconds 1.79551344157e+09
"""


def test_ranks_are_added_up_and_shares_are_their_mean() -> None:
    seen = vllm_snapshot(PAGE)

    assert (seen.running, seen.waiting, seen.waiting_for_room) == (4, 2, 1)
    assert seen.kv_use == pytest.approx(0.375)
    assert seen.preemptions_total == 7
    assert seen.sources == PromptSources(computed=11, cached=20, external=30)


def test_transfers_and_the_life_of_the_process_are_read() -> None:
    seen = vllm_snapshot(PAGE)

    assert (seen.moved_bytes_total, seen.moving_s_total) == (2_097_152, 0.5)
    assert seen.has_nixl
    assert seen.started_s == 1795513441.57
    assert seen.cache == {"block_size": "128", "num_gpu_blocks": "256"}


def test_a_page_of_something_else_says_nothing() -> None:
    seen = vllm_snapshot("http_requests_total 3.0\n")

    assert (seen.sources, seen.has_nixl, seen.cache) == (None, False, {})


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="could not convert"):
        vllm_snapshot("vllm:num_requests_running{} many\n")
