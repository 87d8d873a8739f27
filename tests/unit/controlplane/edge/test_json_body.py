from __future__ import annotations

import json
import threading

import pytest

from controlplane.edge.json_body import json_kind, parse_object, shown
from controlplane.errors import MalformedRequest


def complaint(body: bytes) -> MalformedRequest:
    with pytest.raises(MalformedRequest) as caught:
        parse_object(body)
    return caught.value


def test_an_object_comes_out_as_it_was_written() -> None:
    document = {"a": [1, -2.5, None, True], "b": {"c": "ü😀"}, "": ""}

    assert parse_object(json.dumps(document).encode()) == document


def test_raw_utf8_and_escapes_mean_the_same() -> None:
    assert parse_object('{"a":"é"}'.encode()) == parse_object(b'{"a":"\\u00e9"}')


def test_an_empty_body_is_said_to_be_empty() -> None:
    assert "empty" in complaint(b"").message


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"[]", "an array"),
        (b'"x"', "a string"),
        (b"1", "an integer"),
        (b"1.5", "a decimal number"),
        (b"null", "null"),
        (b"true", "a boolean"),
    ],
)
def test_anything_but_an_object_is_refused_by_its_kind(body: bytes, found: str) -> None:
    assert complaint(body).message == f"the body is {found}: expected a JSON object"


def test_an_object_has_a_kind_too() -> None:
    assert json_kind({}) == "an object"


def test_a_syntax_error_is_located() -> None:
    assert "line 2 column 7" in complaint(b'{\n  "a" 1}').message


@pytest.mark.parametrize("body", [b"{} {}", b'{"a":1,}', b"{'a':1}", b"{", b'{"a":01}', b"\x00"])
def test_almost_json_is_refused(body: bytes) -> None:
    assert "not valid JSON at line 1" in complaint(body).message


def test_a_raw_control_character_in_a_string_is_refused() -> None:
    assert "line 1 column 7" in complaint(b'{"a":"\x01"}').message


def test_bytes_that_are_not_utf8_are_located() -> None:
    assert "at byte 6" in complaint(b'{"a":"\xff"}').message


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_than_utf8_are_refused(encoding: str) -> None:
    complaint('{"a": 1}'.encode(encoding))


def test_a_byte_order_mark_is_refused() -> None:
    assert "byte order mark" in complaint(b"\xef\xbb\xbf{}").message


def test_utf8_that_encodes_a_surrogate_is_refused() -> None:
    assert "not UTF-8" in complaint(b'{"a":"\xed\xa0\x80"}').message


@pytest.mark.parametrize(
    "body",
    [
        b'{"twin":1,"twin":1}',
        b'{"a":{"twin":1,"b":2,"twin":3}}',
        b'{"a":[[{"twin":1,"twin":3}]]}',
        b'{"twin":1,"\\u0074win":2}',
    ],
    ids=["top", "nested", "in a list", "escaped"],
)
def test_a_key_twice_in_one_object_is_refused_by_name(body: bytes) -> None:
    error = complaint(body)

    assert error.param == "twin"
    assert '"twin" twice' in error.message


def test_a_key_may_be_in_two_objects() -> None:
    assert parse_object(b'{"a":{"b":1},"b":{"a":1}}') == {"a": {"b": 1}, "b": {"a": 1}}


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(constant: str) -> None:
    assert f"holds {constant}" in complaint(f'{{"a":[{constant}]}}'.encode()).message


def test_an_integer_too_long_to_convert_is_refused() -> None:
    assert "4300 digits" in complaint(b'{"a":' + b"1" * 5000 + b"}").message


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["arrays", "objects"])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    assert "nested too deep" in complaint(opening * 100_000).message


def test_deep_nesting_is_refused_in_a_thread_as_well() -> None:
    caught: list[MalformedRequest] = []
    thread = threading.Thread(target=lambda: caught.append(complaint(b"[" * 100_000)))

    thread.start()
    thread.join()

    assert "nested too deep" in caught[0].message


def test_messages_hold_nothing_of_the_body() -> None:
    secret = "swordfish"
    bodies = [
        f'{{"a": {secret}}}',
        f'{{"a": "{secret}" 1}}',
        f'"{secret}"',
        f'{{"a":"{secret}","a":"{secret}"}}',
        f'{{"a":"{secret}\\x"}}',
    ]

    assert all(secret not in complaint(body.encode()).message for body in bodies)


def test_a_long_name_is_shown_cut() -> None:
    assert shown("x" * 100) == "x" * 64 + "..."


def test_a_name_is_shown_in_ascii() -> None:
    assert shown('é\ud800"\n') == '\\u00e9\\ud800\\"\\n'
