from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.cli.profile_output import profile_text
from controlplane.domain.throughput.profile import KvSize
from controlplane.errors import ConfigError
from controlplane.planfile import PlanningFleet, load_planning_fleet
from controlplane.planfile_toml import read_toml
from controlplane.profilefile import ProfileFile, load_profile, shipped_profiles

#: PrfaaS (arXiv 2604.15039) Table 3: Gbit/s of KV on 8 H200, at 1K, 8K, 32K and 128K tokens.
TABLE_3 = {
    "kimi-linear-h200": (1.19, 2.29, 3.87, 4.88),
    "mimo-v2-flash-h200": (0.82, 2.85, 4.66, 4.71),
    "qwen3.5-397b-h200": (4.13, 6.28, 8.25, 7.47),
    "ring-2.5-1t-h200": (7.27, 4.47, 2.59, 1.46),
    "minimax-m2.5-h200": (4.94, 32.87, 59.93, 47.82),
    "qwen3-235b-h200": (4.12, 22.42, 33.35, 21.50),
}
LENGTHS = (1 << 10, 1 << 13, 1 << 15, 1 << 17)
#: Table 5: MiB of KV and seconds of prefill of the 1T model.
TABLE_5 = ((190.8, 0.44), (308.9, 0.72), (701.3, 1.84), (2316.3, 7.40))

FLEET = """
[model]
profile = "1t-hybrid-h200"

[[hardware]]
name = "H200"
profile = "1t-hybrid-h200"

[[hardware]]
name = "H20"
profile = "h20.toml"

[[datacenters]]
name = "prfaas"
groups = [{ hardware = "H200", workers = 4, role = "prefill" }]

[[datacenters]]
name = "local"
groups = [{ hardware = "H20", workers = 8 }]

[[links]]
from_datacenter = "prfaas"
to_datacenter = "local"
capacity_gbit_per_s = 100
"""
H20 = """
name = "h20"
source = "measured"
[prefill]
table = [[1024, 0.5], [8192, 1.6], [32768, 5.0]]
[decode]
slots = 20
step_ms = 25
table = [[1, 8], [16, 22], [20, 25]]
"""


def a_fleet(tmp_path: Path, text: str = FLEET, profile: str = H20) -> PlanningFleet:
    (tmp_path / "fleet.toml").write_text(text, encoding="utf-8")
    (tmp_path / "h20.toml").write_text(profile, encoding="utf-8")
    return load_planning_fleet(tmp_path / "fleet.toml")


def refusal(tmp_path: Path, *, text: str = FLEET, profile: str = H20) -> str:
    with pytest.raises(ConfigError) as caught:
        a_fleet(tmp_path, text, profile)
    return caught.value.message


@pytest.mark.parametrize("name", TABLE_3)
def test_derived_profiles_make_kv_at_the_published_rate(name: str) -> None:
    profile = load_profile(name, beside=Path())

    assert profile.source == "derived"
    assert profile.model is not None
    assert profile.prefill is not None
    for tokens, gbit_per_s in zip(LENGTHS, TABLE_3[name], strict=True):
        bits = profile.model.kv.segment_bytes(tokens) * 8
        rate = bits / profile.prefill.profile().prefill_s(tokens) / 1e9
        assert rate == pytest.approx(gbit_per_s, rel=0.005)


def test_the_published_profile_is_table_5() -> None:
    profile = load_profile("1t-hybrid-h200", beside=Path())

    assert profile.model is not None
    assert profile.prefill is not None
    for tokens, (size_mib, prefill_s) in zip(LENGTHS, TABLE_5, strict=True):
        assert profile.prefill.profile().prefill_s(tokens) == pytest.approx(prefill_s)
        assert profile.model.kv.segment_bytes(tokens) / (1 << 20) == pytest.approx(
            size_mib, rel=0.04
        )


def test_each_profile_that_ships_can_be_read_and_says_where_it_is_from() -> None:
    for name in shipped_profiles():
        profile = load_profile(name, beside=Path())
        assert profile.name == name
        assert "2604.15039" in profile.note


def test_a_planning_file_takes_times_and_sizes_from_profiles(tmp_path: Path) -> None:
    fleet = a_fleet(tmp_path)

    prefill = [site.groups[0].prefill for site in fleet.fleet_model().sites]
    assert fleet.model.kv == KvSize(state_bytes=180_355_072, bytes_per_token=17_553.16)
    assert [each and each.prefill_s(8192) for each in prefill] == [0.72, 1.6]
    decode = fleet.fleet_model().sites[1].groups[0].decode
    assert decode is not None
    assert decode.slots == 20


def test_what_the_planning_file_says_itself_counts_first(tmp_path: Path) -> None:
    text = FLEET.replace(
        'profile = "h20.toml"', 'profile = "h20.toml"\ndecode = { slots = 9, step_ms = 12 }'
    )

    decode = a_fleet(tmp_path, text).fleet_model().sites[1].groups[0].decode

    assert decode is not None
    assert decode.slots == 9


def test_a_profile_without_the_phase_of_its_role_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, text=FLEET.replace('role = "prefill"', 'role = "decode"'))

    assert "the profile of hardware H200 (1t-hybrid-h200) has no [decode]" in said


def test_a_profile_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    said = refusal(tmp_path, text=FLEET.replace('"1t-hybrid-h200"', '"1t-hybrid-h100"'))

    assert "model.profile: '1t-hybrid-h100' is neither a file" in said
    assert "1t-hybrid-h200" in said


def test_a_wrong_profile_is_refused_with_its_own_line(tmp_path: Path) -> None:
    said = refusal(tmp_path, profile=H20.replace("step_ms = 25", "step_s = 0.025"))

    assert "hardware H20: profile:" in said
    assert "h20.toml:8: decode.step_s: no such field" in said


def test_a_profile_without_sizes_cannot_be_the_models(tmp_path: Path) -> None:
    said = refusal(
        tmp_path, text=FLEET.replace('profile = "1t-hybrid-h200"', 'profile = "h20.toml"', 1)
    )

    assert "h20.toml does not tell how large KV is" in said


def test_a_model_needs_a_size_or_a_profile(tmp_path: Path) -> None:
    said = refusal(tmp_path, text=FLEET.replace('profile = "1t-hybrid-h200"', 'name = "m"', 1))

    assert "model: give kv_bytes_per_token, or a profile that has it" in said


def test_an_empty_profile_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, profile='name = "h20"\nsource = "measured"\n')

    assert "no [model], no [prefill] and no [decode]" in said


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    for name in shipped_profiles():
        profile = load_profile(name, beside=Path())
        path = tmp_path / f"{name}.toml"
        path.write_text(profile_text(profile), encoding="utf-8")
        assert read_toml(path, ProfileFile) == profile


def test_a_table_becomes_the_polynomial_that_fits_it(tmp_path: Path) -> None:
    fitted = load_profile("1t-hybrid-h200", beside=tmp_path).quadratic()

    assert fitted is not None
    for tokens, (_, prefill_s) in zip(LENGTHS, TABLE_5, strict=True):
        assert fitted.prefill_s(tokens) == pytest.approx(prefill_s, rel=0.08)
