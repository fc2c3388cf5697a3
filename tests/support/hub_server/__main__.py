"""Serve until the input ends: `python -m support.hub_server` from tests/."""

import sys

from .server import HubServer

if __name__ == "__main__":
    with HubServer(int(sys.argv[1]) if len(sys.argv) > 1 else 0) as hub:
        print(hub.url, flush=True)
        sys.stdin.read()
