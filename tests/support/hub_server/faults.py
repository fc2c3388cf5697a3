"""What can be made to go wrong, and on which requests."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

STEPS = (
    "whoami",
    "create_repo",
    "delete_repo",
    "validate_yaml",
    "refs",
    "info",
    "commits",
    "tree",
    "paths_info",
    "preupload",
    "lfs_batch",
    "lfs_put",
    "lfs_verify",
    "commit",
    "tag",
    "delete_tag",
    "branch",
    "delete_branch",
    "resolve_head",
    "resolve_get",
    "other",
)
KINDS = (
    "refuse",
    "stall",
    "drop",
    "status",
    "status_after",
    "drop_after",
    "corrupt",
    "truncate",
    "skew",
)
YEAR = 365.0 * 24 * 3600


@dataclass(eq=False)
class Fault:
    """One thing that goes wrong at one step.

    `refuse`: reset without an answer. `stall`: hold for `seconds`, then close without an answer. `drop`: reset in the
    middle of the request's body, or of the answer's where the request has none. `status`: answer `status`, no effect.
    `status_after`, `drop_after`: the same once the effect has taken place. `corrupt`, `truncate`: other bytes, fewer
    bytes (of an uploaded object, or of the answer). `skew`: the server's clock is off by `seconds`.
    """

    step: str  # one of STEPS, or "*"
    kind: str  # one of KINDS
    status: int = 500
    times: int | None = 1  # None: for ever
    after: int = 0  # matching requests that pass first
    seconds: float | None = None  # default: 30 for a stall, a year for a skew
    retry_after: int | None = None  # Retry-After header of a "status"
    code: str | None = None  # X-Error-Code header of a "status"
    path: str = ""  # only requests whose address contains this
    reset: bool = True  # False: "refuse", "drop" and "drop_after" end the connection in order (FIN), not by RST
    seen: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.step != "*" and self.step not in STEPS:
            raise ValueError(f"Unknown step {self.step!r}")
        if self.kind not in KINDS:
            raise ValueError(f"Unknown fault {self.kind!r}")
        if self.seconds is None:
            self.seconds = YEAR if self.kind == "skew" else 30.0

    def matches(self, step: str, path: str) -> bool:
        """Whether a request is one of those that this fault counts."""
        return self.step in ("*", step) and self.path in path

    def take(self) -> bool:
        """Count one matching request; whether it is hit."""
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Faults:
    """The faults in force, in the order they were given."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._faults))

    def __len__(self) -> int:
        return len(self._faults)

    def append(self, fault: Fault) -> None:
        """Put a fault in force."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """Let everything go well from now on. A request that is already stalled stays so."""
        with self._lock:
            self._faults.clear()

    def take(self, step: str, path: str) -> tuple[Fault | None, float]:
        """The first fault that hits this request, and how far the clock is off for it."""
        hit: Fault | None = None
        skew = 0.0
        with self._lock:
            for fault in self._faults:
                if not fault.matches(step, path):
                    continue
                if fault.kind == "skew":
                    skew += (fault.seconds or 0.0) if fault.take() else 0.0
                elif hit is not None:
                    fault.seen += 1
                elif fault.take():
                    hit = fault
        return hit, skew
