"""Values on their way into a payload and out again."""

import pytest
from google.protobuf.struct_pb2 import Value
from jobwire import decode, encode
from jobwire.v1 import Payload


@pytest.mark.parametrize("value", [None, True, 1, 2**60, 1.5, "é", [1, "two"], {"a": {"b": None}}, b"\x00\xff"])
def test_values_come_back_as_they_were(value: object) -> None:
    assert decode(encode(value)) == value
    assert type(decode(encode(value))) is type(value)


def test_what_a_server_sends() -> None:
    value = Value()
    value.struct_value.update({"whole": 3, "half": 0.5, "list": [True, None, "x"]})
    assert decode(Payload(json=value)) == {"whole": 3, "half": 0.5, "list": [True, None, "x"]}
    assert isinstance(decode(Payload(json=value))["whole"], int)
    assert decode(Payload()) is None
    assert decode(Payload(text="[1]", content_type="text/plain")) == "[1]"
    assert decode(Payload(data=b"[1]", content_type="application/problem+json; charset=utf-8")) == [1]
    assert decode(Payload(data=b"abc", content_type="text/csv")) == "abc"


def test_what_has_no_json_is_refused() -> None:
    for value in (float("nan"), [float("inf")], {1, 2}):
        with pytest.raises((TypeError, ValueError)):
            encode(value)


def test_a_body_that_was_left_out_is_not_none() -> None:
    with pytest.raises(ValueError, match="the body of 70000 bytes was left out"):
        decode(Payload(omitted=True, size_bytes=70_000, content_type="application/json"))


def test_a_payload_is_passed_through() -> None:
    payload = Payload(text="a,b", content_type="text/csv")
    assert encode(payload) is payload
