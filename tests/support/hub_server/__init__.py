"""A small Hugging Face Hub for tests: real HTTP, real clients, faults on demand, all in memory."""

from .faults import KINDS, STEPS, Fault
from .server import HubServer, Request, client_environment
from .store import Blob, Commit, Repo

__all__ = ["KINDS", "STEPS", "Blob", "Commit", "Fault", "HubServer", "Repo", "Request", "client_environment"]
