"""How often and how long something is tried that may succeed later."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from hf_lifealign.hub.errors import HubError

T = TypeVar("T")
_LONGEST = 60.0


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


@dataclass(frozen=True)
class Patience:
    """
    Args:
        attempts (`int`): how often something is tried that may succeed later.
        first_wait (`float`): seconds before the second attempt; doubled for each further one, at most a minute, unless
            the server asks for another wait.
        sleep (`Callable`): how to wait.
        tell (`Callable`): is told of each wait, a line at a time.
    """

    attempts: int = 5
    first_wait: float = 1.0
    sleep: Callable[[float], None] = _sleep
    tell: Callable[[str], None] = field(default=lambda line: None)

    def until_done(self, attempt: Callable[[], T]) -> T:
        """Repeats an attempt until it succeeds, fails for good, or was made often enough.

        Raises:
            HubError: the last one.
        """
        wait = self.first_wait
        for number in range(1, self.attempts):
            try:
                return attempt()
            except HubError as error:
                if not error.may_pass:
                    raise
                pause = error.wait if error.wait is not None else wait
                wait = min(wait * 2, _LONGEST)
                self.tell(f"{error} Trying again in {pause:.0f} s ({number} of {self.attempts - 1}).")
                self.sleep(pause)
        return attempt()
