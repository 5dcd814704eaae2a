"""Python values as the documents that jobs take and give."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.struct_pb2 import Value

from .v1 import Payload

_JSON = "application/json"


def encode(value: object) -> Payload:
    """A value as a payload: bytes as they are, everything else as JSON. A `Payload` is passed through.

    The JSON travels as text, so that no integer is squeezed into a double on the way.
    """
    if isinstance(value, Payload):
        return value
    if isinstance(value, bytes):
        return Payload(data=value)
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Payload(text=text, content_type=_JSON)


def decode(payload: Payload) -> Any:
    """The value in a payload: JSON as what it means, other text as str, the rest as bytes. No document is None.

    Raises `ValueError` if the server has left the body out.
    """
    if payload.omitted:
        raise ValueError(f"the body of {payload.size_bytes} bytes was left out: get() or result() has it")
    body = payload.WhichOneof("body")
    if body is None:
        return None
    if body == "json":
        return _value(payload.json)
    kind = payload.content_type.split(";")[0].strip().lower()
    document: str | bytes = payload.text if body == "text" else payload.data
    if kind == _JSON or kind.endswith("+json"):
        return json.loads(document)
    if isinstance(document, bytes) and kind.startswith("text/"):
        return document.decode()
    return document


def _value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "struct_value":
            return {key: _value(item) for key, item in value.struct_value.fields.items()}
    return None
