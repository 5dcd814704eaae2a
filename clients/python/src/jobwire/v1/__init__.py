"""The messages of the contract, `jobwire.v1`."""

from jobwire.v1.admin_service_pb2 import *  # noqa: F403
from jobwire.v1.job_service_pb2 import *  # noqa: F403
from jobwire.v1.types_pb2 import *  # noqa: F403
from jobwire.v1.worker_service_pb2 import *  # noqa: F403
