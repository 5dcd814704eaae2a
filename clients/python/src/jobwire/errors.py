"""What a call can end with instead of a reply."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

# The domain of the errors that jobwire itself gives. Others come from libraries and proxies.
DOMAIN = "jobwire.v1"


class Error(Exception):
    """Why a call, or a stream, failed."""

    #: Libraries and proxies use the same codes: tell causes apart by `reason`.
    code: grpc.StatusCode
    #: For people; not part of the contract.
    message: str
    #: The reason of the contract, such as ``JOB_NOT_FOUND``. None if the error is not jobwire's own.
    reason: str | None
    #: What belongs to the reason, such as a limit that was exceeded.
    metadata: dict[str, str]
    #: Fields of the request that were refused: path and why.
    fields: list[tuple[str, str]]
    #: When the server wants to be asked again, in seconds.
    retry_delay: float | None

    def __init__(self, code: grpc.StatusCode, message: str, reason: str | None = None) -> None:
        super().__init__(f"{message} ({reason or code.name})")
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = {}
        self.fields = []
        self.retry_delay = None

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Error:
        """Reads the details that jobwire adds to its statuses."""
        info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        bad = error_details_pb2.BadRequest()
        for detail in _details(error):
            for message in (info, retry, bad):
                detail.Unpack(message)
        own = info.domain == DOMAIN
        result = cls(error.code(), error.details() or "", info.reason if own else None)
        if own:
            result.metadata = dict(info.metadata)
        result.fields = [(field.field, field.description) for field in bad.field_violations]
        if retry.HasField("retry_delay"):
            result.retry_delay = retry.retry_delay.ToTimedelta().total_seconds()
        return result


def _details(error: grpc.aio.AioRpcError) -> list[any_pb2.Any]:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            status = status_pb2.Status()
            try:
                status.ParseFromString(value)
            except ValueError:
                return []
            return list(status.details)
    return []


def repeatable(error: Error, harmless: bool) -> bool:
    """Whether the same request may be sent again. `harmless`: twice does no more than once."""
    if error.code is grpc.StatusCode.UNAVAILABLE or late(error):
        return harmless
    # A plain refusal: nothing was done.
    refused = error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    return refused and error.reason is not None and error.retry_delay is not None


def late(error: Error) -> bool:
    """Whether no answer came in the time of one try. Where the server says so itself, it has tried."""
    return error.code is grpc.StatusCode.DEADLINE_EXCEEDED and error.reason is None


def resumable(error: Error) -> bool:
    """Whether a new stream may bring what this error cut off.

    Codes alone do not tell: libraries and proxies make UNKNOWN, INTERNAL and CANCELLED of a broken connection, and then
    there is no reason of the contract.
    """
    match error.code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.DEADLINE_EXCEEDED:
            return True
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return error.reason is not None
        case grpc.StatusCode.UNKNOWN | grpc.StatusCode.INTERNAL | grpc.StatusCode.CANCELLED:
            return error.reason is None
    return False
