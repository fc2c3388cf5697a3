"""Processes that end with what began them, unless that is killed, and folders that hold one of them at a time."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Children:
    """The processes of a comparison, several at a time, which end with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, line: list[str], log: IO[bytes], held: tuple[int, ...], environment: Mapping[str, str]) -> int:
        """Runs a command to its end.

        Args:
            line (`list[str]`): the command.
            log (`IO[bytes]`): takes what it says.
            held (`tuple[int, ...]`): file descriptors that it is to keep open.
            environment (`Mapping[str, str]`): of the process.

        Returns:
            `int`: its exit code; minus the signal that ended it.
        """
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(line, stdout=log, stderr=log, pass_fds=held, env=dict(environment))
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def stop(self) -> None:
        """Ends what runs, and lets nothing begin any more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


@contextlib.contextmanager
def interrupted_by_termination() -> Iterator[None]:
    """In this context SIGTERM and SIGHUP interrupt the main thread as Ctrl-C does, so that it can end what it began; a
    signal that is ignored, or that somebody else handles, stays so."""
    known = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        known = []

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in known if signal.getsignal(each) == signal.SIG_DFL}
    for each in before:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def alone_in(folder: Path, what: str) -> Iterator[tuple[int, ...]]:
    """A lock on a folder, as file descriptors that a process is given to keep open: it holds the lock as long as it
    lives, also when the one that began it is killed.

    Args:
        folder (`Path`): that is locked.
        what (`str`): its name in the error.

    Raises:
        ValueError: if another process holds it.
    """
    if fcntl is None:  # no locks that are handed on
        yield ()
        return
    with open(folder / "run.lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(
                f"A run of {what} still goes on in {folder}, left by a comparison that was killed or begun by another "
                "one. Wait for its end, or end it, and give the same command again."
            ) from None
        yield (file.fileno(),)
