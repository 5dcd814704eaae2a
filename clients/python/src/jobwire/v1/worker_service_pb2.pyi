import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from jobwire.v1 import job_service_pb2 as _job_service_pb2
from jobwire.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkRequest(_message.Message):
    __slots__ = ("hello", "capacity", "heartbeat", "progress", "finish")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    capacity: WorkerCapacity
    heartbeat: WorkerHeartbeat
    progress: LeaseProgress
    finish: Finish
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., capacity: _Optional[_Union[WorkerCapacity, _Mapping]] = ..., heartbeat: _Optional[_Union[WorkerHeartbeat, _Mapping]] = ..., progress: _Optional[_Union[LeaseProgress, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("welcome", "lease", "heartbeat_ack", "finish_ack", "revoked", "drain")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_ACK_FIELD_NUMBER: _ClassVar[int]
    FINISH_ACK_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    welcome: WorkerWelcome
    lease: Lease
    heartbeat_ack: HeartbeatAck
    finish_ack: FinishAck
    revoked: LeaseRevoked
    drain: WorkerDrain
    def __init__(self, welcome: _Optional[_Union[WorkerWelcome, _Mapping]] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., heartbeat_ack: _Optional[_Union[HeartbeatAck, _Mapping]] = ..., finish_ack: _Optional[_Union[FinishAck, _Mapping]] = ..., revoked: _Optional[_Union[LeaseRevoked, _Mapping]] = ..., drain: _Optional[_Union[WorkerDrain, _Mapping]] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("worker_id", "kinds", "queues", "max_in_flight", "held_lease_ids", "labels", "sdk", "payload_format")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    HELD_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SDK_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    queues: _containers.RepeatedScalarFieldContainer[str]
    max_in_flight: int
    held_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    labels: _containers.ScalarMap[str, str]
    sdk: str
    payload_format: _types_pb2.PayloadFormat
    def __init__(self, worker_id: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., queues: _Optional[_Iterable[str]] = ..., max_in_flight: _Optional[int] = ..., held_lease_ids: _Optional[_Iterable[str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., sdk: _Optional[str] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ...) -> None: ...

class WorkerWelcome(_message.Message):
    __slots__ = ("heartbeat_interval", "lease_duration", "lost_lease_ids", "instance_id")
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    LOST_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    heartbeat_interval: _duration_pb2.Duration
    lease_duration: _duration_pb2.Duration
    lost_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    instance_id: str
    def __init__(self, heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lost_lease_ids: _Optional[_Iterable[str]] = ..., instance_id: _Optional[str] = ...) -> None: ...

class WorkerCapacity(_message.Message):
    __slots__ = ("max_in_flight",)
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    max_in_flight: int
    def __init__(self, max_in_flight: _Optional[int] = ...) -> None: ...

class WorkerHeartbeat(_message.Message):
    __slots__ = ("lease_ids", "last_lease_sequence")
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    LAST_LEASE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    last_lease_sequence: int
    def __init__(self, lease_ids: _Optional[_Iterable[str]] = ..., last_lease_sequence: _Optional[int] = ...) -> None: ...

class HeartbeatAck(_message.Message):
    __slots__ = ("lost_lease_ids", "lease_expire_time")
    LOST_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    lost_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    lease_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, lost_lease_ids: _Optional[_Iterable[str]] = ..., lease_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "sequence", "job", "lease_expire_time", "attempt_deadline")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    sequence: int
    job: _types_pb2.Job
    lease_expire_time: _timestamp_pb2.Timestamp
    attempt_deadline: _timestamp_pb2.Timestamp
    def __init__(self, lease_id: _Optional[str] = ..., sequence: _Optional[int] = ..., job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ..., lease_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempt_deadline: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class LeaseRevoked(_message.Message):
    __slots__ = ("lease_id", "reason", "grace")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[LeaseRevoked.Reason]
        REASON_CANCELLED: _ClassVar[LeaseRevoked.Reason]
        REASON_TIMEOUT: _ClassVar[LeaseRevoked.Reason]
        REASON_EXPIRED: _ClassVar[LeaseRevoked.Reason]
        REASON_SUPERSEDED: _ClassVar[LeaseRevoked.Reason]
    REASON_UNSPECIFIED: LeaseRevoked.Reason
    REASON_CANCELLED: LeaseRevoked.Reason
    REASON_TIMEOUT: LeaseRevoked.Reason
    REASON_EXPIRED: LeaseRevoked.Reason
    REASON_SUPERSEDED: LeaseRevoked.Reason
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GRACE_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    reason: LeaseRevoked.Reason
    grace: _duration_pb2.Duration
    def __init__(self, lease_id: _Optional[str] = ..., reason: _Optional[_Union[LeaseRevoked.Reason, str]] = ..., grace: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class WorkerDrain(_message.Message):
    __slots__ = ("reconnect_within",)
    RECONNECT_WITHIN_FIELD_NUMBER: _ClassVar[int]
    reconnect_within: _duration_pb2.Duration
    def __init__(self, reconnect_within: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class LeaseProgress(_message.Message):
    __slots__ = ("lease_id", "progress")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    progress: _types_pb2.Progress
    def __init__(self, lease_id: _Optional[str] = ..., progress: _Optional[_Union[_types_pb2.Progress, _Mapping]] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("lease_id", "succeeded", "failed", "released")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    succeeded: _types_pb2.Payload
    failed: _types_pb2.JobError
    released: Release
    def __init__(self, lease_id: _Optional[str] = ..., succeeded: _Optional[_Union[_types_pb2.Payload, _Mapping]] = ..., failed: _Optional[_Union[_types_pb2.JobError, _Mapping]] = ..., released: _Optional[_Union[Release, _Mapping]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("reason", "delay")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DELAY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    delay: _duration_pb2.Duration
    def __init__(self, reason: _Optional[str] = ..., delay: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class FinishAck(_message.Message):
    __slots__ = ("lease_id", "accepted", "rejection")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REJECTION_FIELD_NUMBER: _ClassVar[int]
    lease_id: str
    accepted: bool
    rejection: _job_service_pb2.Rejection
    def __init__(self, lease_id: _Optional[str] = ..., accepted: _Optional[bool] = ..., rejection: _Optional[_Union[_job_service_pb2.Rejection, _Mapping]] = ...) -> None: ...

class LeaseJobsRequest(_message.Message):
    __slots__ = ("worker_id", "kinds", "queues", "max_jobs", "wait", "lease_duration", "request_id", "payload_format")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    QUEUES_FIELD_NUMBER: _ClassVar[int]
    MAX_JOBS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FORMAT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    queues: _containers.RepeatedScalarFieldContainer[str]
    max_jobs: int
    wait: _duration_pb2.Duration
    lease_duration: _duration_pb2.Duration
    request_id: str
    payload_format: _types_pb2.PayloadFormat
    def __init__(self, worker_id: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ..., queues: _Optional[_Iterable[str]] = ..., max_jobs: _Optional[int] = ..., wait: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., request_id: _Optional[str] = ..., payload_format: _Optional[_Union[_types_pb2.PayloadFormat, str]] = ...) -> None: ...

class LeaseJobsResponse(_message.Message):
    __slots__ = ("leases",)
    LEASES_FIELD_NUMBER: _ClassVar[int]
    leases: _containers.RepeatedCompositeFieldContainer[Lease]
    def __init__(self, leases: _Optional[_Iterable[_Union[Lease, _Mapping]]] = ...) -> None: ...

class RenewLeasesRequest(_message.Message):
    __slots__ = ("worker_id", "lease_ids", "lease_duration", "progress")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_DURATION_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    lease_ids: _containers.RepeatedScalarFieldContainer[str]
    lease_duration: _duration_pb2.Duration
    progress: _containers.RepeatedCompositeFieldContainer[LeaseProgress]
    def __init__(self, worker_id: _Optional[str] = ..., lease_ids: _Optional[_Iterable[str]] = ..., lease_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., progress: _Optional[_Iterable[_Union[LeaseProgress, _Mapping]]] = ...) -> None: ...

class RenewLeasesResponse(_message.Message):
    __slots__ = ("lost_lease_ids", "revoked", "lease_expire_time")
    LOST_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    LEASE_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    lost_lease_ids: _containers.RepeatedScalarFieldContainer[str]
    revoked: _containers.RepeatedCompositeFieldContainer[LeaseRevoked]
    lease_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, lost_lease_ids: _Optional[_Iterable[str]] = ..., revoked: _Optional[_Iterable[_Union[LeaseRevoked, _Mapping]]] = ..., lease_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class FinishJobRequest(_message.Message):
    __slots__ = ("finish",)
    FINISH_FIELD_NUMBER: _ClassVar[int]
    finish: Finish
    def __init__(self, finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class FinishJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: _types_pb2.Job
    def __init__(self, job: _Optional[_Union[_types_pb2.Job, _Mapping]] = ...) -> None: ...
