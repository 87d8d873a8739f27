from __future__ import annotations

import struct
from typing import Any

import pytest
from builders import a_beat
from pydantic import ValidationError

from controlplane.domain.prefix import InventoryDelta, InventoryEntry
from controlplane.wire import (
    FRAME_BYTES_MAX,
    HEADER_BYTES_MAX,
    DecodeReport,
    FrameKind,
    FrameReader,
    Inventory,
    KvGroup,
    KvLocation,
    KvManifest,
    LinkReport,
    PrefillJob,
    PrefillReport,
    Profile,
    Reservation,
    Sampling,
    TransferReport,
    WorkerBeat,
    WorkerError,
    pack_frame,
    pack_parcel,
    unpack_parcel,
)

A, B, C, D = (bytes([n]) * 16 for n in range(4))


def a_reservation(**overrides: Any) -> Reservation:
    values: dict[str, Any] = {
        "reservation_id": "r1.1",
        "owner": "router-1",
        "ttl_s": 30.0,
        "prefill_ttl_s": 5.0,
        "prefill_worker": "east/p1",
        "prefill_incarnation": "i1",
        "prefill_tokens": 100,
        "prefill_requests_max": 16,
        "decode_worker": "west/d1",
        "decode_incarnation": "i1",
        "decode_requests_max": 16,
    }
    return Reservation(**{**values, **overrides})


# --- Messages ---------------------------------------------------------------------------------


def test_a_message_carries_its_version() -> None:
    assert '"version":1' in WorkerError(code="draining", message="").model_dump_json()


def test_a_message_of_another_version_is_refused() -> None:
    with pytest.raises(ValidationError, match="version"):
        WorkerError.model_validate_json(b'{"version": 2, "code": "draining", "message": ""}')


def test_a_field_from_the_future_is_ignored() -> None:
    beat = a_beat()
    text = beat.model_dump_json().removesuffix("}") + ', "moon_phase": "full"}'

    assert WorkerBeat.model_validate_json(text) == beat


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        a_beat().is_draining = True  # type: ignore[misc]


def test_a_beat_survives_its_journey() -> None:
    beat = a_beat(
        "east/p1",
        sequence=7,
        is_draining=True,
        profile=Profile(prefill_s_per_token=0.1 + 0.2, kv_bytes_per_token=1 << 20),
        inventory=Inventory(stored={A.hex(): "as"}, removed=(B.hex(),)),
        links=(LinkReport(from_datacenter="west", to_datacenter="east", goodput_bps=1e9),),
    )

    assert WorkerBeat.model_validate_json(beat.model_dump_json()) == beat


def test_a_location_survives_its_journey() -> None:
    location = KvLocation(
        worker_id="east/p1",
        datacenter="east",
        incarnation="i1",
        segment_id="s1",
        generation=3,
        host="127.0.0.1",
        port=9001,
        lease_s=30.0,
        manifest=KvManifest(
            fingerprint="f",
            scope="a1",
            token_count=100,
            block_tokens=16,
            groups=(
                KvGroup(name="attention", bytes_per_token=1000, fixed_bytes=0),
                KvGroup(name="state", bytes_per_token=0, fixed_bytes=50_000),
            ),
        ),
    )

    assert KvLocation.model_validate_json(location.model_dump_json()) == location


def test_a_report_survives_its_journey() -> None:
    report = DecodeReport(
        finish_reason="stop",
        output_tokens=5,
        prompt_tokens_computed=1,
        queue_s=0.0,
        first_token_s=0.25,
        finished_s=0.5,
        transfer=TransferReport(bytes=1, chunks=1),
        prefill=PrefillReport(queue_s=0, compute_s=0.1, cached_tokens=64, computed_tokens=36),
    )

    assert DecodeReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"worker_id": ""}, id="no name"),
        pytest.param({"worker_id": "x" * 129}, id="a name too long"),
        pytest.param({"worker_id": "east p1"}, id="a name with a space"),
        pytest.param({"worker_id": "east/p1\n"}, id="a name with a line break"),
        pytest.param({"worker_id": "east/p1{}"}, id="a name with braces"),
        pytest.param({"role": "both"}, id="an unknown role"),
        pytest.param({"sequence": 0}, id="a sequence that begins at zero"),
        pytest.param({"url": "https://127.0.0.1"}, id="another scheme"),
        pytest.param({"url": "file:///etc/passwd"}, id="a file"),
        pytest.param({"url": "http://" + "x" * 512}, id="a url too long"),
        pytest.param({"block_tokens": 0}, id="blocks without tokens"),
        pytest.param({"slots": 0}, id="no slots"),
        pytest.param({"requests_max": 0}, id="no requests"),
        pytest.param({"context_tokens_max": 0}, id="no context"),
        pytest.param({"profile": {"prefill_s_per_token": -0.1}}, id="negative time"),
        pytest.param({"profile": {"prefill_s_per_token": float("inf")}}, id="infinite time"),
        pytest.param({"profile": {"decode_step_s": float("nan")}}, id="time that is no number"),
        pytest.param({"load": {"queue_tokens": -1}}, id="a negative count"),
        pytest.param({"inventory": {"stored": {"aa": "x"}}}, id="an unknown mark"),
        pytest.param(
            {"inventory": {"removed": ("aa",) * 65537}}, id="more removals than a beat may have"
        ),
        pytest.param(
            {"inventory": {"stored": {f"{n:06x}": "a" for n in range(65537)}}},
            id="more blocks than a beat may have",
        ),
    ],
)
def test_a_beat_out_of_range_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_beat(**overrides)


@pytest.mark.parametrize(
    ("link", "is_right"),
    [
        pytest.param(None, True, id="inside a datacenter"),
        pytest.param("east>west", True, id="a directed link"),
        pytest.param("east", False, id="no direction"),
        pytest.param(">west", False, id="from nowhere"),
        pytest.param("east>", False, id="to nowhere"),
        pytest.param("east>west>north", False, id="two links"),
        pytest.param("", False, id="empty"),
    ],
)
def test_a_reservation_names_a_directed_link(
    link: str | None,
    is_right: bool,  # noqa: FBT001 - a column of the table
) -> None:
    if is_right:
        assert a_reservation(link=link).link == link
    else:
        with pytest.raises(ValidationError):
            a_reservation(link=link)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"temperature": -0.1}, id="temperature below zero"),
        pytest.param({"temperature": 2.1}, id="temperature over two"),
        pytest.param({"top_p": 0}, id="nothing to choose from"),
        pytest.param({"top_p": 1.1}, id="more than everything"),
        pytest.param({"output_tokens_max": 0}, id="no output"),
    ],
)
def test_sampling_out_of_range_is_refused(overrides: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling(**{"output_tokens_max": 1, **overrides})


# --- Inventories ------------------------------------------------------------------------------


def test_an_inventory_is_the_delta_in_hexadecimal() -> None:
    delta = InventoryDelta(
        is_full=True,
        stored={
            A: InventoryEntry(has_attention=True, has_state=False),
            B: InventoryEntry(has_attention=False, has_state=True),
            C: InventoryEntry(has_attention=True, has_state=True),
        },
        removed=(D,),
    )

    inventory = Inventory.from_delta(delta)

    assert inventory.stored == {A.hex(): "a", B.hex(): "s", C.hex(): "as"}
    assert inventory.removed == (D.hex(),)
    assert inventory.to_delta() == delta


def test_an_entry_that_holds_nothing_travels_as_a_removal() -> None:
    nothing = InventoryEntry(has_attention=False, has_state=False)

    inventory = Inventory.from_delta(InventoryDelta(stored={A: nothing}, removed=(B,)))

    assert inventory == Inventory(removed=(B.hex(), A.hex()))


@pytest.mark.parametrize(
    "inventory",
    [
        pytest.param(Inventory(stored={"zz": "a"}), id="stored"),
        pytest.param(Inventory(removed=("zz",)), id="removed"),
    ],
)
def test_a_block_that_is_not_hexadecimal_is_refused(inventory: Inventory) -> None:
    with pytest.raises(ValueError, match="hexadecimal"):
        inventory.to_delta()


# --- Parcels ----------------------------------------------------------------------------------


def test_a_parcel_is_a_length_a_header_and_bytes() -> None:
    job = PrefillJob(
        request_id="r1.1",
        incarnation="i1",
        fingerprint="f",
        scope="a1",
        token_width_bytes=2,
        destination="west",
        deadline_s=3.5,
    )

    body = pack_parcel(job, b"\x01\x00\x02\x00")

    (length,) = struct.unpack_from("<I", body)
    assert PrefillJob.model_validate_json(body[4 : 4 + length]) == job
    assert body[4 + length :] == b"\x01\x00\x02\x00"
    assert unpack_parcel(body) == (body[4 : 4 + length], b"\x01\x00\x02\x00")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b"", "at least 4 bytes, this one has 0", id="nothing"),
        pytest.param(b"\x01\x00\x00", "at least 4 bytes, this one has 3", id="half a length"),
        pytest.param(b"\x03\x00\x00\x00{}", "a header of 3 bytes", id="a header cut short"),
        pytest.param(b"\xff\xff\xff\xff{}", "a header of 4294967295 bytes", id="a huge length"),
        pytest.param(
            struct.pack("<I", HEADER_BYTES_MAX + 1) + bytes(HEADER_BYTES_MAX + 1),
            f"a header of {HEADER_BYTES_MAX + 1} bytes",
            id="a header over the limit",
        ),
    ],
)
def test_a_broken_parcel_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        unpack_parcel(body)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        pytest.param(b"\x00\x00\x00\x00", (b"", b""), id="empty header, no payload"),
        pytest.param(b"\x02\x00\x00\x00{}", (b"{}", b""), id="no payload"),
        pytest.param(
            struct.pack("<I", HEADER_BYTES_MAX) + bytes(HEADER_BYTES_MAX) + b"x",
            (bytes(HEADER_BYTES_MAX), b"x"),
            id="the largest header",
        ),
    ],
)
def test_a_parcel_at_its_limits_is_taken(body: bytes, parts: tuple[bytes, bytes]) -> None:
    assert unpack_parcel(body) == parts


# --- Frames -----------------------------------------------------------------------------------


def test_a_frame_is_a_kind_a_length_and_bytes() -> None:
    assert pack_frame(FrameKind.CONTENT, b"abc") == b"\x01\x03\x00\x00\x00abc"


def test_frames_come_out_in_order_and_one_by_one() -> None:
    reader = FrameReader()
    first, second = pack_frame(FrameKind.CONTENT, b"a"), pack_frame(FrameKind.REPORT, b"")

    assert reader.feed(first + second[:2]) == [(FrameKind.CONTENT, b"a")]
    assert reader.feed(b"") == []
    assert reader.feed(second[2:]) == [(FrameKind.REPORT, b"")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        pytest.param(b"\x09\x00\x00\x00\x00", "9 is not a valid FrameKind", id="unknown kind"),
        pytest.param(b"\x00\x00\x00\x00\x00", "0 is not a valid FrameKind", id="kind zero"),
        pytest.param(
            struct.pack("<BI", FrameKind.CONTENT, FRAME_BYTES_MAX + 1),
            f"a frame of {FRAME_BYTES_MAX + 1} bytes",
            id="over the limit, refused before its bytes have come",
        ),
    ],
)
def test_a_broken_frame_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FrameReader().feed(data)


def test_the_largest_frame_is_taken() -> None:
    payload = bytes(FRAME_BYTES_MAX)

    frames = FrameReader().feed(pack_frame(FrameKind.CONTENT, payload))

    assert frames == [(FrameKind.CONTENT, payload)]
