"""Publishes a run and kills its own process at the n-th of the events a push consists of.

python mortal_push.py RUN REPO N     (N = 0: pushes to its end)
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import httpx2

fatal, events = int(sys.argv[3]), 0


def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
    """Counts two events for a call, one before and one after it, and dies at the fatal one."""

    def event() -> None:
        global events
        events += 1
        if events == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(*args: Any, **kwargs: Any) -> Any:
        event()
        result = function(*args, **kwargs)
        event()
        return result

    return counted


# What others see are requests; what a later push of this machine sees are renames and removals.
httpx2.Client.send = mortal(httpx2.Client.send)  # type: ignore[method-assign]
os.replace = mortal(os.replace)
os.unlink = mortal(os.unlink)

from hf_lifealign.cli.main import main

code = main(["push", sys.argv[1], sys.argv[2], "--background"])
print(f"events {events}")
sys.exit(code)
