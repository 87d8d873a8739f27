from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.errors import ConfigError
from controlplane.planfile import load_planning_fleet
from controlplane.planfile_traffic import load_traffic

EXAMPLES = Path(__file__).parents[3] / "examples/case-study"
FLEET = (EXAMPLES / "fleet.toml").read_text(encoding="utf-8")
TRAFFIC = (EXAMPLES / "traffic.toml").read_text(encoding="utf-8")


def refusal(tmp_path: Path, text: str, *, is_traffic: bool = False) -> str:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        (load_traffic if is_traffic else load_planning_fleet)(path)
    assert str(path) in caught.value.message
    return caught.value.message.replace(str(path), "file.toml")


def line_of(text: str, beginning: str) -> int:
    return 1 + [line.startswith(beginning) for line in text.splitlines()].index(True)


def test_the_example_is_the_papers_fleet() -> None:
    fleet = load_planning_fleet(EXAMPLES / "fleet.toml")

    model = fleet.fleet_model()
    assert [(site.name, site.groups[0].workers) for site in model.sites] == [
        ("prfaas", 4),
        ("local", 8),
    ]
    assert fleet.links[0].capacity_bps == 100e9
    assert fleet.model.kv.segment_bytes(32_000) == pytest.approx(701.3 * 2**20, rel=0.012)
    h200, h20 = model.sites[0].groups[0], model.sites[1].groups[0]
    assert h200.decode is None
    assert not h200.is_convertible
    assert h20.is_convertible
    assert h20.price_per_hour == h200.price_per_hour / 2


def test_a_role_takes_away_the_other_phase(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.replace('role = "either"', 'role = "decode"'), encoding="utf-8")

    group = load_planning_fleet(path).fleet_model().sites[1].groups[0]

    assert group.prefill is None
    assert group.decode is not None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("kv_bytes_per_token = 17_553.16", "", "model: give kv_bytes_per_token, or a profile"),
        ("workers = 4", "workers = -4", "workers: Input should be greater than or equal to 0"),
        ("workers = 4", "workers = 4.5", "workers: Input should be a valid integer"),
        ("workers = 4", 'workers = "4"', "workers: Input should be a valid integer"),
        ("capacity_gbit_per_s = 100", "capacity_gbit_per_s = 0", "greater than 0"),
        ("capacity_gbit_per_s = 100", "capacity_gbit_per_s = inf", "capacity_gbit_per_s"),
        ("capacity_gbit_per_s = 100", "capacity_gbit_per_s = 1e9", "less than or equal"),
        (
            "capacity_gbit_per_s = 100",
            "capacity_gbyte_per_s = 12",
            "no such field (units are part of a field's name)",
        ),
        ("price_per_hour = 2.0", "price_per_hour = -2.0", "hardware.0.price_per_hour"),
        ("rtt_ms = 10", "rtt_ms = nan", "rtt_ms"),
        ("step_ms = 25", "step_s = 0.025", "decode.step_s: no such field"),
        ('from_datacenter = "prfaas"', 'from_datacenter = "east"', "names a datacenter"),
        ('hardware = "H20"', 'hardware = "H21"', "hardware 'H21' is not one of"),
        ('role = "prefill"', 'role = "decode"', "has no decode profile"),
        ('role = "prefill"', 'role = "both"', "Input should be 'prefill', 'decode' or 'either'"),
        ("fixed_s = 0.371, s_per_token = 42.9e-6, s_per_token_squared = 93.8e-12", "", "table"),
    ],
)
def test_what_is_wrong_in_a_fleet_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in FLEET
    assert said in refusal(tmp_path, FLEET.replace(old, new, 1))


def test_a_refusal_says_the_line_and_what_was_found(tmp_path: Path) -> None:
    text = FLEET.replace("price_per_hour = 1.0", "price_per_hour = -1.0")
    line = line_of(text, "price_per_hour = -1.0")

    message = refusal(tmp_path, text)

    assert message.startswith(f"file.toml:{line}: hardware.1.price_per_hour:")
    assert "(got -1.0)" in message


def test_a_misspelt_field_is_told_its_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, FLEET.replace("price_per_gb", "price_per_tb"))

    assert "did you mean price_per_gb?" in message
    assert "capacity_gbit_per_s" in message


@pytest.mark.parametrize("text", ["name =\nx = 1", "[[links]\n", "a = 1\na = 2\n"])
def test_a_broken_line_is_refused_with_its_number(tmp_path: Path, text: str) -> None:
    assert "at line" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[[1000, 0.4]]", "two points"),
        ("[[2000, 0.4], [1000, 0.5]]", "1000 follows 2000"),
        ("[[1000, 0.4], [2000, 0.3]]", "0.3 follows 0.4"),
        ("[[1000, -0.4], [2000, 0.3]]", "greater than 0"),
        ("[[1000], [2000, 0.3]]", "table.0.1"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(tmp_path: Path, table: str, said: str) -> None:
    formula = "{ fixed_s = 0.453, s_per_token = 131.6e-6, s_per_token_squared = 292e-12 }"
    assert formula in FLEET
    assert said in refusal(tmp_path, FLEET.replace(formula, f"{{ table = {table} }}"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("arrival_per_s = 2.0", "", "arrival_per_s must be given when there is no trace"),
        ("arrival_per_s = 2.0", "arrival_per_s = 0", "greater than 0"),
        ("output_tokens = 1024", "output_tokens = -1", "output_tokens"),
        ("cached_share = 0.0", "cached_share = 1.5", "cached_share"),
        ("sigma = 1.00", "", "needs sigma"),
        ("sigma = 1.00", "sigma = 0", "lengths.sigma"),
        ("min_tokens = 128", "min_tokens = 200_000", "must be below max_tokens"),
        ('"lognormal"', '"pareto"', "'lognormal' or 'empirical'"),
        ('"lognormal"', '"empirical"', "needs trace"),
        ("arrival_per_s = 2.0", "arrival_per_min = 120", "no such field"),
    ],
)
def test_what_is_wrong_in_traffic_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TRAFFIC
    assert said in refusal(tmp_path, TRAFFIC.replace(old, new, 1), is_traffic=True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml"):
        load_planning_fleet(tmp_path / "nowhere.toml")
