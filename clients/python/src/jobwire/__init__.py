"""Submit jobs to a jobwire server, watch their outcomes, and run them.

Requests and replies are the messages of the contract, in `jobwire.v1`. Times in this package are seconds.
"""

from . import v1
from .client import Client
from .errors import Error
from .payload import decode, encode
from .worker import Context, Failure, Worker

__all__ = ["Client", "Context", "Error", "Failure", "Worker", "decode", "encode", "v1"]
