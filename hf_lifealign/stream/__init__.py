"""The stream room: preference tasks in order, loaded lazily and checked as a whole before anything is trained."""

from hf_lifealign.stream.errors import Problem, StreamError
from hf_lifealign.stream.report import Overlap, StreamReport, TaskReport
from hf_lifealign.stream.stream import TaskStream
from hf_lifealign.stream.task import LoadedTask, Task, fingerprint

__all__ = [
    "LoadedTask",
    "Overlap",
    "Problem",
    "StreamError",
    "StreamReport",
    "Task",
    "TaskReport",
    "TaskStream",
    "fingerprint",
]
