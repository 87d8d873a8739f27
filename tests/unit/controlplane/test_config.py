from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from controlplane.config import (
    DEFAULT_FLEET,
    DatacenterConfig,
    Environment,
    FleetConfig,
    HeartbeatConfig,
    KvConfig,
    LimitsConfig,
    LinkConfig,
    RouterConfig,
    describe_validation,
    load_fleet,
)
from controlplane.errors import ConfigError

FLEET = """
name = "two-sites"

[router]
datacenter = "west"
policy = "prfaas"
policy_parameters = { threshold_tokens = 1024 }

[[datacenters]]
name = "east"
prefill_workers = 2

[[datacenters]]
name = "west"
prefill_workers = 1
decode_workers = 2

[[links]]
from_datacenter = "east"
to_datacenter = "west"
capacity_mbit_per_s = 1000
"""


@pytest.fixture
def fleet_file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET, encoding="utf-8")
    return path


def a_fleet(**overrides: Any) -> FleetConfig:
    return FleetConfig.model_validate({**tomllib.loads(FLEET), **overrides})


def complaint(error: pytest.ExceptionInfo[ValidationError]) -> str:
    return describe_validation(error.value)


# --- Fleet files ------------------------------------------------------------------------------


def test_a_fleet_file_is_read(fleet_file: Path) -> None:
    fleet = load_fleet(fleet_file)

    assert fleet.name == "two-sites"
    assert fleet.router.policy_parameters == {"threshold_tokens": 1024}
    assert [site.name for site in fleet.datacenters] == ["east", "west"]
    assert [link.link_id for link in fleet.links] == ["east>west"]


def test_what_a_fleet_file_leaves_out_has_a_default(fleet_file: Path) -> None:
    fleet = load_fleet(fleet_file)

    assert fleet.heartbeat == HeartbeatConfig()
    assert fleet.kv == KvConfig()
    assert fleet.router.port == 8000


def test_a_missing_fleet_file_is_told_by_name(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"

    with pytest.raises(ConfigError, match=f"cannot read fleet file {path}: .*No such file"):
        load_fleet(path)


def test_a_directory_is_no_fleet_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read fleet file"):
        load_fleet(tmp_path)


def test_a_fleet_file_that_is_no_text_is_refused(fleet_file: Path) -> None:
    fleet_file.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match="cannot read fleet file"):
        load_fleet(fleet_file)


def test_a_fleet_file_that_is_no_toml_is_told_where(fleet_file: Path) -> None:
    fleet_file.write_text("name = \n", encoding="utf-8")

    with pytest.raises(ConfigError, match=r"is not valid TOML: .*line 1"):
        load_fleet(fleet_file)


def test_a_wrong_field_is_told_with_file_field_and_value(fleet_file: Path) -> None:
    text = FLEET.replace("capacity_mbit_per_s = 1000", "capacity_mbit_per_s = 0")
    fleet_file.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_fleet(fleet_file)

    assert str(caught.value) == (
        f"{fleet_file}: links.0.capacity_mbit_per_s: Input should be greater than 0 (got 0)"
    )


def test_every_complaint_is_told_at_once(fleet_file: Path) -> None:
    text = FLEET.replace('"west"\npolicy', '"West"\nport = 70000\npolicy')
    fleet_file.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_fleet(fleet_file)

    assert "router.datacenter: String should match pattern" in str(caught.value)
    assert "router.port: Input should be less than or equal to 65535 (got 70000)" in str(
        caught.value
    )
    assert "https://" not in str(caught.value)


# --- What must fit together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        pytest.param(
            {"datacenters": [{"name": "west", "decode_workers": 1, "prefill_workers": 1}] * 2},
            "datacenter names must differ, got ['west', 'west']",
            id="a datacenter twice",
        ),
        pytest.param(
            {"router": {"datacenter": "north"}},
            "router.datacenter 'north' is not one of ['east', 'west']",
            id="a router nowhere",
        ),
        pytest.param(
            {"links": [{"from_datacenter": "east", "to_datacenter": "north"}]},
            "link east>north names a datacenter that is not in ['east', 'west']",
            id="a link to nowhere",
        ),
        pytest.param(
            {"links": [{"from_datacenter": "north", "to_datacenter": "west"}]},
            "link north>west names a datacenter that is not in ['east', 'west']",
            id="a link from nowhere",
        ),
        pytest.param(
            {"links": [{"from_datacenter": "west", "to_datacenter": "west"}]},
            "link west>west begins and ends in the same datacenter",
            id="a link to itself",
        ),
        pytest.param(
            {"links": [{"from_datacenter": "east", "to_datacenter": "west"}] * 2},
            "link east>west is there twice",
            id="a link twice",
        ),
        pytest.param(
            {
                "datacenters": [
                    {"name": "east", "prefill_workers": 1},
                    {"name": "west", "prefill_workers": 1},
                ]
            },
            "no datacenter has decode_workers: nothing could answer a request",
            id="nobody decodes",
        ),
        pytest.param(
            {
                "datacenters": [
                    {"name": "east", "decode_workers": 1},
                    {"name": "west", "decode_workers": 1},
                ]
            },
            "no datacenter has prefill_workers: nothing could start a request",
            id="nobody prefills",
        ),
    ],
)
def test_a_fleet_that_cannot_work_is_refused(overrides: dict[str, Any], said: str) -> None:
    for link in overrides.get("links", []):
        link["capacity_mbit_per_s"] = 100

    with pytest.raises(ValidationError) as caught:
        a_fleet(**overrides)

    assert complaint(caught) == f"the file as a whole: Value error, {said}"


@pytest.mark.parametrize(
    ("link", "said"),
    [
        pytest.param(
            {"egress_price_per_gb": 0.1, "prices": [{"from_hour": 0, "to_hour": 24, "price": 1}]},
            "give egress_price_per_gb or prices, not both",
            id="two kinds of prices",
        ),
        pytest.param(
            {"prices": [{"from_hour": 0, "to_hour": 7, "price": 1}]},
            "prices end at 7, the day at 24",
            id="a part of the day",
        ),
        pytest.param(
            {
                "prices": [
                    {"from_hour": 0, "to_hour": 8, "price": 1},
                    {"from_hour": 7, "to_hour": 24, "price": 2},
                ]
            },
            "prices[1] from 7 to 24 begins before 8, where the one before it ends",
            id="an overlap",
        ),
        pytest.param({"egress_price_per_gb": -1}, "greater than or equal to 0", id="negative"),
        pytest.param(
            {"prices": [{"from_hour": 0, "to_hour": 25, "price": 1}]},
            "less than or equal to 24",
            id="an hour that no day has",
        ),
        pytest.param(
            {"prices": [{"from_hour": 0, "to_hour": 24, "price": float("nan")}]},
            "finite number",
            id="no number",
        ),
    ],
)
def test_prices_that_make_no_day_are_refused(link: dict[str, Any], said: str) -> None:
    base = {"from_datacenter": "east", "to_datacenter": "west", "capacity_mbit_per_s": 100}

    with pytest.raises(ValidationError) as caught:
        a_fleet(links=[base | link])

    assert said in complaint(caught)


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        pytest.param(
            [{"name": "acme", "datacenters": ["south"]}],
            "tenant 'acme' names ['south'], which are not in ['east', 'west']",
            id="an unknown datacenter",
        ),
        pytest.param(
            [{"name": "acme", "datacenters": ["east"]}] * 2,
            "tenants: name 'acme' is there twice",
            id="a tenant twice",
        ),
        pytest.param(
            [
                {"name": name, "datacenters": ["east"], "tokens_sha256": ["0123456789abcdef" * 4]}
                for name in ("acme", "globex")
            ],
            "tenants: token 01234567... is there twice",
            id="a token of two tenants",
        ),
        pytest.param([{"name": "acme", "datacenters": []}], "at least 1 item", id="nowhere"),
        pytest.param(
            [{"name": "acme", "datacenters": ["east"], "tokens_sha256": ["sk-acme"]}],
            "String should match pattern",
            id="a token itself",
        ),
    ],
)
def test_tenants_that_fit_nowhere_are_refused(tenants: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        a_fleet(tenants=tenants)

    assert said in complaint(caught)


@pytest.mark.parametrize(
    ("health", "said"),
    [
        (
            {"link_abundant_utilisation": 0.9, "link_scarce_utilisation": 0.9},
            "link_abundant_utilisation = 0.9 must be less than link_scarce_utilisation = 0.9",
        ),
        (
            {"link_abundant_backlog_s": 3.0},
            "link_abundant_backlog_s = 3 must be less than link_scarce_backlog_s = 2",
        ),
    ],
)
def test_a_link_is_not_scarce_and_abundant_by_turns(health: dict[str, float], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        a_fleet(health=health)

    assert said in complaint(caught)


def test_links_of_both_directions_are_two_links() -> None:
    links = [
        {"from_datacenter": "east", "to_datacenter": "west", "capacity_mbit_per_s": 100},
        {"from_datacenter": "west", "to_datacenter": "east", "capacity_mbit_per_s": 50},
    ]

    fleet = a_fleet(links=links)

    there, back = fleet.link("east>west"), fleet.link("west>east")
    assert there is not None
    assert back is not None
    assert (there.capacity_bps, back.capacity_bps) == (1e8, 5e7)


def test_a_fleet_finds_its_parts_by_name() -> None:
    fleet = a_fleet()

    assert fleet.link("east>west") is fleet.links[0]
    assert fleet.link("west>east") is None
    assert fleet.datacenter("east") is fleet.datacenters[0]
    assert fleet.datacenter("north") is None


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        pytest.param({"nmae": "x"}, "nmae", id="the fleet"),
        pytest.param({"router": {"datacenter": "west", "prot": 1}}, "router.prot", id="router"),
        pytest.param({"kv": {"lease": 1}}, "kv.lease", id="kv"),
        pytest.param({"limits": {"request_max": 1}}, "limits.request_max", id="limits"),
        pytest.param({"store": {"timeout_s": 1}}, "store.timeout_s", id="store"),
        pytest.param({"model": {"nmae": "x"}}, "model.nmae", id="model"),
        pytest.param({"heartbeat": {"ttl": 9}}, "heartbeat.ttl", id="heartbeat"),
    ],
)
def test_a_misspelt_key_is_an_error_in_every_section(overrides: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        a_fleet(**overrides)

    assert complaint(caught).startswith(f"{field}: Extra inputs are not permitted")


@pytest.mark.parametrize(
    "name",
    ["", "East", "1east", "-east", "e" * 33, "ea st", "ea>st", "ea/st", "east\n"],
)
def test_a_datacenter_name_must_fit_into_keys_and_links(name: str) -> None:
    with pytest.raises(ValidationError):
        DatacenterConfig(name=name)


@pytest.mark.parametrize("name", ["e", "east-1", "e" * 32])
def test_a_plain_datacenter_name_is_taken(name: str) -> None:
    assert DatacenterConfig(name=name).name == name


@pytest.mark.parametrize(
    ("times", "is_right"),
    [
        pytest.param({}, True, id="the defaults"),
        pytest.param({"interval_s": 1, "timeout_s": 1, "ttl_s": 6}, True, id="exactly a third"),
        pytest.param({"interval_s": 1, "timeout_s": 1.1, "ttl_s": 6}, False, id="above a third"),
        pytest.param({"interval_s": 1, "timeout_s": 1, "ttl_s": 5}, False, id="too short a life"),
    ],
)
def test_one_slow_heartbeat_must_not_evict_a_worker(
    times: dict[str, float],
    is_right: bool,  # noqa: FBT001 - a column of the table
) -> None:
    if is_right:
        HeartbeatConfig(**times)
    else:
        with pytest.raises(ValidationError, match="one slow heartbeat evicts a live worker"):
            HeartbeatConfig(**times)


@pytest.mark.parametrize("value", [0, -1, 86_401, float("inf"), float("nan")])
def test_a_wait_is_positive_and_bounded(value: float) -> None:
    with pytest.raises(ValidationError):
        KvConfig(lease_s=value)


def test_a_section_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_fleet().router.port = 1  # type: ignore[misc]


def test_a_link_has_its_capacity_in_bits_per_second() -> None:
    link = LinkConfig(from_datacenter="east", to_datacenter="west", capacity_mbit_per_s=2.5)

    assert link.capacity_bps == 2_500_000


def test_the_default_fleet_is_valid_and_offloads() -> None:
    fleet = FleetConfig.model_validate(DEFAULT_FLEET.model_dump())

    assert fleet == DEFAULT_FLEET
    assert fleet.link("east>west") is not None
    assert fleet.router.datacenter == "west"


def test_a_fleet_survives_its_journey_to_a_child_process() -> None:
    assert FleetConfig.model_validate_json(DEFAULT_FLEET.model_dump_json()) == DEFAULT_FLEET


# --- The environment --------------------------------------------------------------------------


@pytest.fixture
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "PRFAAS_LOG_FORMAT", "PRFAAS_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_bare_environment")
def test_an_empty_environment_means_the_embedded_store_and_json_logs() -> None:
    environment = Environment()

    assert environment.redis_url == ""
    assert (environment.log_format, environment.log_level) == ("json", "info")


@pytest.mark.usefixtures("_bare_environment")
def test_the_environment_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:6379/0")
    monkeypatch.setenv("PRFAAS_LOG_FORMAT", "console")
    monkeypatch.setenv("PRFAAS_LOG_LEVEL", "debug")
    monkeypatch.setenv("PRFAAS_UNKNOWN", "is not ours to judge")

    environment = Environment()

    assert environment.redis_url == "redis://127.0.0.1:6379/0"
    assert (environment.log_format, environment.log_level) == ("console", "debug")


@pytest.mark.usefixtures("_bare_environment")
@pytest.mark.parametrize(
    "url",
    [
        "redis://somewhere",
        "rediss://one:6379,two:6379/0",
        "unix:///somewhere",
        "redis+sentinel://one:26379,two:26379/mymaster/0",
    ],
)
def test_redis_is_one_server_or_several_nodes_or_sentinels(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)

    assert Environment().redis_url == url


@pytest.mark.usefixtures("_bare_environment")
@pytest.mark.parametrize("url", ["redis+sentinel://one", "redis://one,", "redis://one?retry=1"])
def test_a_redis_url_is_checked_before_anything_starts(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)

    with pytest.raises(ValidationError, match="REDIS_URL"):
        Environment()


@pytest.mark.usefixtures("_bare_environment")
@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", "redis:/x"])
def test_another_scheme_is_refused_with_an_example(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", url)

    with pytest.raises(ValidationError, match=r"for example redis://127\.0\.0\.1:6379/0"):
        Environment()


# --- Complaints -------------------------------------------------------------------------------


def test_a_complaint_shows_plain_values_only() -> None:
    with pytest.raises(ValidationError) as caught:
        RouterConfig(datacenter={"name": "west"}, port="http")  # type: ignore[arg-type]

    assert complaint(caught) == (
        "port: Input should be a valid integer, unable to parse string as an integer "
        "(got 'http'); datacenter: Input should be a valid string"
    )


def test_a_complaint_about_an_unknown_key_does_not_show_its_value() -> None:
    with pytest.raises(ValidationError) as caught:
        RouterConfig.model_validate({"datacenter": "west", "tenant_sallt": "hush"})

    assert complaint(caught) == "tenant_sallt: Extra inputs are not permitted"


@pytest.mark.usefixtures("_bare_environment")
def test_a_complaint_about_redis_does_not_show_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", "http://user:hush@somewhere")

    with pytest.raises(ValidationError) as caught:
        Environment()

    assert "hush" not in complaint(caught)


def test_a_lease_outlives_a_late_renewal() -> None:
    with pytest.raises(ValidationError, match="half of lease_s"):
        KvConfig(lease_s=5, renew_interval_s=3)


def test_a_worker_says_that_it_is_alive_before_it_is_taken_for_hanging() -> None:
    with pytest.raises(ValidationError, match="half of decode_idle_timeout_s"):
        LimitsConfig(decode_idle_timeout_s=2, alive_interval_s=2)


def test_a_heartbeat_at_its_exact_limit_is_taken() -> None:
    HeartbeatConfig(interval_s=0.1, timeout_s=0.2, ttl_s=0.9)


# --- Replicas of the router -------------------------------------------------------------------


def test_each_replica_has_ports_of_its_own() -> None:
    router = RouterConfig(datacenter="west", port=8000, admin_port=9000, replicas=3)

    assert [(one.port, one.admin_port) for one in router.each()] == [
        (8000, 9000),
        (8001, 9001),
        (8002, 9002),
    ]


@pytest.mark.parametrize(
    ("ports", "complaint"),
    [
        pytest.param({"port": 8000, "admin_port": 8001}, "must be 2 apart", id="overlap"),
        pytest.param({"port": 0, "admin_port": 8001}, "need known ports", id="unknown"),
        pytest.param({"port": 8000, "admin_port": 65_535}, "ports up to 65535", id="beyond"),
    ],
)
def test_replicas_whose_ports_cannot_work_are_refused(
    ports: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint):
        RouterConfig(datacenter="west", replicas=2, **ports)


def a_site(**servers: object) -> dict[str, object]:
    return {"name": "west", **servers}


VLLM = {"engine": "vllm", "tokenizer": "models/m"}
URL = "http://127.0.0.1:8100"


def test_each_engine_server_of_a_fleet_file_is_a_worker() -> None:
    site = a_site(prefill_servers=[URL], decode_servers=[URL, "http://127.0.0.1:8101"])

    fleet = FleetConfig.model_validate(
        {"router": {"datacenter": "west"}, "model": VLLM, "datacenters": [site]}
    )

    (west,) = fleet.datacenters
    assert (west.prefill_workers, west.decode_workers) == (1, 2)


@pytest.mark.parametrize(
    ("model", "site", "said"),
    [
        (VLLM, a_site(prefill_servers=[URL], prefill_workers=2), "prefill_workers = 2, but there"),
        ({}, a_site(prefill_servers=[URL], decode_workers=1), "has prefill_servers or decode"),
        (VLLM, a_site(prefill_servers=["127.0.0.1:1"]), "prefill_servers"),
        ({"server": {"revision": "r1"}}, a_site(), r"\[model.server\] is for engine"),
    ],
    ids=["two counts", "another engine", "no URL", "settings of another engine"],
)
def test_engine_servers_that_do_not_fit_are_refused(
    model: dict[str, object], site: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        FleetConfig.model_validate(
            {"router": {"datacenter": "west"}, "model": model, "datacenters": [site]}
        )
