"""What can go wrong with a repository, as errors that say whether trying again may help."""


class HubError(RuntimeError):
    """Something was not published or not fetched; the message says what to do.

    Args:
        message (`str`): what was tried, what is wrong, what to do.
        may_pass (`bool`): whether the same attempt may succeed later (network, server, conflicts).
        wait (`float`, *optional*): seconds after which the server asks to be tried again.
    """

    def __init__(self, message: str, may_pass: bool = False, wait: float | None = None) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.wait = wait


class DamagedRevisionError(HubError):
    """A revision is not what its lineage says, or holds what no revision may hold."""


class NotPublishableError(HubError):
    """What lies in the run's folder must not leave the machine: damaged tensors, or something private."""
