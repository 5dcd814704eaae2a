import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from jobwire.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("spec", "job_id", "request_id", "wait", "on_unique_conflict", "validate_only", "payload_format")
    class OnUniqueConflict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ON_UNIQUE_CONFLICT_UNSPECIFIED: _ClassVar[SubmitRequest.OnUniqueConflict]
        ON_UNIQUE_CONFLICT_RETURN_EXISTING: _ClassVar[SubmitRequest.OnUniqueConflict]
        ON_UNIQUE_CONFLICT_REJECT: _ClassVar[SubmitRequest.OnUniqueConflict]
    ON_UNIQUE_CONFLICT_UNSPECIFIED: SubmitRequest.OnUniqueConflict
    ON_UNIQUE_CONFLICT_RETURN_EXISTING: SubmitRequest.OnUniqueConflict
    ON_UNIQUE_CONFLICT_REJECT: SubmitRequest.OnUniqueConflict
    SPEC_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    ON_UNIQUE_CONFLICT_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    spec: _types_pb2.JobSpec
    job_id: str
    request_id: str
    wait: _duration_pb2.Duration
    on_unique_conflict: SubmitRequest.OnUniqueConflict
    validate_only: bool
    payload_format: _types_pb2.PayloadFormat
    def __init__(self, spec: _Optional[_Union[_types_pb2.JobSpec, _Mapping]] = ..., job_id: _Optional[str] = ..., request_id: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., on_unique_conflict: _Optional[_Union[SubmitRequest.OnUniqueConflict, str]] = ..., validate_only: _Optional[bool] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ...) -> None: ...

class SubmitResponse(_message.Message):
    __slots__ = ("job", "deduplicated", "done", "cursor")
    JOB_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    job: _types_pb2.Job
    deduplicated: bool
    done: bool
    cursor: str
    def __init__(self, job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ..., deduplicated: _Optional[bool] = ..., done: _Optional[bool] = ..., cursor: _Optional[str] = ...) -> None: ...

class BatchSubmitRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[SubmitRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[SubmitRequest, _Mapping]]] = ...) -> None: ...

class BatchSubmitResponse(_message.Message):
    __slots__ = ("responses", "cursor")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[SubmitResponse]
    cursor: str
    def __init__(self, responses: _Optional[_Iterable[_Union[SubmitResponse, _Mapping]]] = ..., cursor: _Optional[str] = ...) -> None: ...

class StreamSubmitRequest(_message.Message):
    __slots__ = ("sequence", "request")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: SubmitRequest
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[SubmitRequest, _Mapping]] = ...) -> None: ...

class StreamSubmitResponse(_message.Message):
    __slots__ = ("sequence", "accepted", "rejected")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    accepted: Accepted
    rejected: Rejection
    def __init__(self, sequence: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., rejected: _Optional[_Union[Rejection, _Mapping]] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("job_id", "deduplicated", "cursor")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    DEDUPLICATED_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    deduplicated: bool
    cursor: str
    def __init__(self, job_id: _Optional[str] = ..., deduplicated: _Optional[bool] = ..., cursor: _Optional[str] = ...) -> None: ...

class Rejection(_message.Message):
    __slots__ = ("code", "reason", "message", "field", "retry_delay")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    code: int
    reason: str
    message: str
    field: str
    retry_delay: _duration_pb2.Duration
    def __init__(self, code: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class GetResultRequest(_message.Message):
    __slots__ = ("job_id", "wait", "payload_format")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    wait: _duration_pb2.Duration
    payload_format: _types_pb2.PayloadFormat
    def __init__(self, job_id: _Optional[str] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ...) -> None: ...

class GetResultResponse(_message.Message):
    __slots__ = ("done", "job", "retry_after")
    DONE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    done: bool
    job: _types_pb2.Job
    retry_after: _duration_pb2.Duration
    def __init__(self, done: _Optional[bool] = ..., job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WatchResultsRequest(_message.Message):
    __slots__ = ("filter", "after_cursor", "since_time", "lookback", "earliest", "include_existing", "until_all_done", "include_progress", "include_transitions", "heartbeat_interval", "on_gap", "payload_format", "max_inline_output_bytes")
    class OnGap(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ON_GAP_UNSPECIFIED: _ClassVar[WatchResultsRequest.OnGap]
        ON_GAP_FAIL: _ClassVar[WatchResultsRequest.OnGap]
        ON_GAP_CONTINUE: _ClassVar[WatchResultsRequest.OnGap]
    ON_GAP_UNSPECIFIED: WatchResultsRequest.OnGap
    ON_GAP_FAIL: WatchResultsRequest.OnGap
    ON_GAP_CONTINUE: WatchResultsRequest.OnGap
    FILTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_CURSOR_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    LOOKBACK_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_EXISTING_FIELD_NUMBER: _ClassVar[int]
    UNTIL_ALL_DONE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    ON_GAP_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    MAX_INLINE_OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    filter: _types_pb2.JobFilter
    after_cursor: str
    since_time: _timestamp_pb2.Timestamp
    lookback: _duration_pb2.Duration
    earliest: bool
    include_existing: bool
    until_all_done: bool
    include_progress: bool
    include_transitions: bool
    heartbeat_interval: _duration_pb2.Duration
    on_gap: WatchResultsRequest.OnGap
    payload_format: _types_pb2.PayloadFormat
    max_inline_output_bytes: int
    def __init__(self, filter: _Optional[_Union[_types_pb2.JobFilter, _Mapping]] = ..., after_cursor: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., lookback: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., earliest: _Optional[bool] = ..., include_existing: _Optional[bool] = ..., until_all_done: _Optional[bool] = ..., include_progress: _Optional[bool] = ..., include_transitions: _Optional[bool] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., on_gap: _Optional[_Union[WatchResultsRequest.OnGap, str]] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ..., max_inline_output_bytes: _Optional[int] = ...) -> None: ...

class WatchResultsResponse(_message.Message):
    __slots__ = ("cursor", "finished", "changed", "progress", "checkpoint", "gap")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    cursor: str
    finished: _types_pb2.Job
    changed: _types_pb2.Job
    progress: JobProgress
    checkpoint: Checkpoint
    gap: Gap
    def __init__(self, cursor: _Optional[str] = ..., finished: _Optional[_Union[_types_pb2.Job, _Mapping]] = ..., changed: _Optional[_Union[_types_pb2.Job, _Mapping]] = ..., progress: _Optional[_Union[JobProgress, _Mapping]] = ..., checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ...) -> None: ...

class JobProgress(_message.Message):
    __slots__ = ("job_id", "run", "attempt", "progress")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    run: int
    attempt: int
    progress: _types_pb2.Progress
    def __init__(self, job_id: _Optional[str] = ..., run: _Optional[int] = ..., attempt: _Optional[int] = ..., progress: _Optional[_Union[_types_pb2.Progress, _Mapping]] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("caught_up", "closing", "server_time")
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_FIELD_NUMBER: _ClassVar[int]
    caught_up: bool
    closing: bool
    server_time: _timestamp_pb2.Timestamp
    def __init__(self, caught_up: _Optional[bool] = ..., closing: _Optional[bool] = ..., server_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("reason", "missed_events", "oldest_time")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Gap.Reason]
        REASON_RETENTION: _ClassVar[Gap.Reason]
        REASON_LOG_REPLACED: _ClassVar[Gap.Reason]
    REASON_UNSPECIFIED: Gap.Reason
    REASON_RETENTION: Gap.Reason
    REASON_LOG_REPLACED: Gap.Reason
    REASON_FIELD_NUMBER: _ClassVar[int]
    MISSED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_TIME_FIELD_NUMBER: _ClassVar[int]
    reason: Gap.Reason
    missed_events: int
    oldest_time: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[_Union[Gap.Reason, str]] = ..., missed_events: _Optional[int] = ..., oldest_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("job_id", "view", "payload_format")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    view: _types_pb2.JobView
    payload_format: _types_pb2.PayloadFormat
    def __init__(self, job_id: _Optional[str] = ..., view: _Optional[_Union[_types_pb2.JobView, str]] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ...) -> None: ...

class GetJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _types_pb2.Job
    def __init__(self, job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token", "view", "oldest_first", "payload_format")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    VIEW_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIRST_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    filter: _types_pb2.JobFilter
    page_size: int
    page_token: str
    view: _types_pb2.JobView
    oldest_first: bool
    payload_format: _types_pb2.PayloadFormat
    def __init__(self, filter: _Optional[_Union[_types_pb2.JobFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., view: _Optional[_Union[_types_pb2.JobView, str]] = ..., oldest_first: _Optional[bool] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token", "cursor")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.Job]
    next_page_token: str
    cursor: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[_types_pb2.Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., cursor: _Optional[str] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("job_id", "reason", "etag")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    reason: str
    etag: str
    def __init__(self, job_id: _Optional[str] = ..., reason: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class CancelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _types_pb2.Job
    def __init__(self, job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ...) -> None: ...

class RetryJobRequest(_message.Message):
    __slots__ = ("job_id", "delay", "etag")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    delay: _duration_pb2.Duration
    etag: str
    def __init__(self, job_id: _Optional[str] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class RetryJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _types_pb2.Job
    def __init__(self, job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ...) -> None: ...

class DeleteJobRequest(_message.Message):
    __slots__ = ("job_id", "etag", "allow_missing")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    etag: str
    allow_missing: bool
    def __init__(self, job_id: _Optional[str] = ..., etag: _Optional[str] = ..., allow_missing: _Optional[bool] = ...) -> None: ...

class DeleteJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "instance_id", "log_id", "features", "limits")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_ID_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    version: str
    instance_id: str
    log_id: str
    features: _containers.RepeatedScalarFieldContainer[str]
    limits: Limits
    def __init__(self, version: _Optional[str] = ..., instance_id: _Optional[str] = ..., log_id: _Optional[str] = ..., features: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_payload_bytes", "max_output_bytes", "max_message_bytes", "max_batch_items", "max_wait", "watch_retention", "request_id_window")
    MAX_PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_WAIT_FIELD_NUMBER: _ClassVar[int]
    WATCH_RETENTION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_WINDOW_FIELD_NUMBER: _ClassVar[int]
    max_payload_bytes: int
    max_output_bytes: int
    max_message_bytes: int
    max_batch_items: int
    max_wait: _duration_pb2.Duration
    watch_retention: _duration_pb2.Duration
    request_id_window: _duration_pb2.Duration
    def __init__(self, max_payload_bytes: _Optional[int] = ..., max_output_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_batch_items: _Optional[int] = ..., max_wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., watch_retention: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id_window: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
