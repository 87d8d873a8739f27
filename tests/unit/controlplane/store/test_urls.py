"""What may stand in REDIS_URL."""

from __future__ import annotations

import pytest

from controlplane.errors import ConfigError
from controlplane.store.urls import HOSTS_MAX, Address, parse_store_url, to_address


def test_one_server() -> None:
    where = parse_store_url("redis://user:se%2Ccret@redis.local:6380/2")

    assert where.addresses == (Address("redis.local", 6380),)
    assert where.master is None
    assert not where.is_tls
    assert where.options == {"username": "user", "password": "se,cret", "db": 2}


def test_a_port_is_the_usual_one_unless_it_is_given() -> None:
    assert parse_store_url("redis://a").addresses == (Address("a", 6379),)
    assert parse_store_url("redis+sentinel://a/m").addresses == (Address("a", 26379),)


def test_seeds_are_kept_in_order_and_none_twice() -> None:
    where = parse_store_url("rediss://:word@a:1,b:2,[::1]:3,a:1/0?ssl_cert_reqs=none")

    assert where.addresses == (Address("a", 1), Address("b", 2), Address("::1", 3))
    assert where.is_tls
    assert where.options == {"password": "word", "db": 0, "ssl_cert_reqs": "none"}


def test_a_socket() -> None:
    where = parse_store_url("unix://guest:word@/run/redis.sock?db=1")

    assert where.addresses == (Address("/run/redis.sock", 0),)
    assert where.options == {"username": "guest", "password": "word", "db": 1}


def test_sentinels_name_a_master_and_have_credentials_of_their_own() -> None:
    where = parse_store_url(
        "rediss+sentinel://u:p@a:26379,b:26380/mymaster/3"
        "?sentinel_username=su&sentinel_password=sp&ssl_ca_certs=/ca.pem"
    )

    assert where.addresses == (Address("a", 26379), Address("b", 26380))
    assert where.master == "mymaster"
    assert where.is_tls
    assert where.options == {
        "username": "u",
        "password": "p",
        "db": 3,
        "ssl_ca_certs": "/ca.pem",
    }
    assert where.sentinel_options == {
        "username": "su",
        "password": "sp",
        "ssl_ca_certs": "/ca.pem",
    }


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://localhost",
        "redis://",
        "redis://,",
        "redis://a:1,",
        "redis://a:0",
        "redis://a:65536",
        "redis://a:port",
        "redis://:::",
        "redis://a b:1",
        "unix://",
        "redis+sentinel://a:26379",
        "redis+sentinel://a:26379//0",
        "redis+sentinel:///mymaster",
        "redis://a?socket_timeout=9",
        "redis://a?retry_on_timeout=yes",
        "redis:/x",
        "redis://a?db=x",
        "redis://" + ",".join(f"h{number}" for number in range(HOSTS_MAX + 1)),
    ],
)
def test_anything_else_is_refused_and_says_which_setting_it_was(url: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_URL"):
        parse_store_url(url)


def test_neither_a_refusal_nor_a_picture_in_words_shows_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_store_url("redis://user:secret@a:0,b:port/0")

    assert "secret" not in caught.value.message
    assert "secret" not in repr(parse_store_url("redis://user:secret@a:1"))


@pytest.mark.parametrize(
    ("host", "port", "address"),
    [
        ("10.0.0.1", "6379", Address("10.0.0.1", 6379)),
        ("::1", "1", Address("::1", 1)),
        ("", "6379", None),
        ("?", "6379", None),
        ("a", "0", None),
        ("a", "65536", None),
        ("a", "-1", None),
        ("a", "", None),
        ("a", "1²", None),
    ],
)
def test_an_address_that_a_server_names_is_checked(
    host: str, port: str, address: Address | None
) -> None:
    assert to_address(host, port) == address
