"""Connections to a server."""

from __future__ import annotations

import re

import grpc

_DEFAULT_PORT = 50051
MAX_MESSAGE_BYTES = 4 << 20
CONNECT_TIMEOUT = 5.0

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Faster pings than this are not promised to be welcome.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Channels of one process share connections otherwise; a stream has a connection of its own, because calls hang on
    # one whose streams are used up.
    ("grpc.use_local_subchannel_pool", 1),
    # A server that is back is found within a second or two. The pauses between calls are this package's own.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # No pause in spite of its name: how long one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 1000)),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),
]


def target(address: str) -> str:
    """`http://host:port` or `host:port`, without a port 50051, as `host:port`."""
    match = re.fullmatch(r"(?:http://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::(\d{1,5}))?/?", address.strip())
    if not match or (match[2] and not 0 < int(match[2]) < 65536):
        raise ValueError(f"{address!r} is not the address of a server: it must look like http://host:port")
    return f"{match[1]}:{match[2] or _DEFAULT_PORT}"


def connect(
    address: str, credentials: grpc.ChannelCredentials | None, compression: grpc.Compression | None
) -> grpc.aio.Channel:
    """A channel that connects when it is used."""
    if credentials is None:
        return grpc.aio.insecure_channel(target(address), _OPTIONS, compression)
    return grpc.aio.secure_channel(target(address), credentials, _OPTIONS, compression)
