from __future__ import annotations

import pytest

from controlplane.errors import MalformedRequest
from controlplane.router.policy_document import (
    HISTORY_MAX,
    PolicyChange,
    PolicyChoice,
    changed,
    read_change,
    read_document,
)

LOCAL = PolicyChange(policy="local_only", by="ann", reason="the link is being repaired")


def test_a_change_becomes_the_newest_of_the_history() -> None:
    first = changed(None, LOCAL, 1.0)
    second = changed(first, PolicyChange(policy="prfaas", parameters={"threshold_tokens": 9}), 2.0)

    assert second.live == PolicyChoice(policy="prfaas", parameters={"threshold_tokens": 9})
    assert [(past.policy, past.by, past.at) for past in second.history] == [
        ("prfaas", "", 2.0),
        ("local_only", "ann", 1.0),
    ]


def test_the_history_is_bounded_and_keeps_the_newest() -> None:
    document = changed(None, LOCAL, 0.0)
    for at in range(1, 2 * HISTORY_MAX):
        document = changed(document, LOCAL, float(at))

    assert [past.at for past in document.history] == [
        float(at) for at in range(2 * HISTORY_MAX - 1, HISTORY_MAX - 1, -1)
    ]


def test_a_document_survives_its_way_through_the_store() -> None:
    document = changed(None, LOCAL, 1.0)

    assert read_document(document.model_dump_json().encode()) == document


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (PolicyChange(policy="lokal"), r"policy: unknown policy 'lokal'; installed are: .*prfaas"),
        (
            PolicyChange(policy="prfaas", parameters={"treshold": 1}),
            r"policy: policy 'prfaas': treshold: .*its parameters are: .*threshold_tokens",
        ),
        (
            PolicyChange(policy="prfaas", shadows=(PolicyChoice(policy="x"),)),
            r"shadows\[0\]: unknown policy 'x'",
        ),
        (
            PolicyChange(policy="prfaas", shadows=(PolicyChoice(policy="local_only"),) * 2),
            r"shadows\[1\] is there twice",
        ),
    ],
)
def test_a_change_to_what_cannot_run_is_refused_and_says_what_can(
    change: PolicyChange, said: str
) -> None:
    with pytest.raises(MalformedRequest, match=said):
        changed(None, change, 1.0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "Invalid JSON"),
        (b"[]", "the file as a whole"),
        (b"{}", "policy: Field required"),
        (b'{"policy":"prfaas","shadow":[]}', "shadow: Extra inputs"),
        (
            b'{"policy":"prfaas","shadows":[{"policy":"a"},{"policy":"b"},{"policy":"c"},{"policy":"d"}]}',
            "shadows: .*at most 3",
        ),
        (b'{"policy":"prfaas","expected_version":-1}', "expected_version"),
    ],
)
def test_a_body_that_is_no_change_is_refused_with_the_field(body: bytes, said: str) -> None:
    with pytest.raises(MalformedRequest, match=said):
        read_change(body)
