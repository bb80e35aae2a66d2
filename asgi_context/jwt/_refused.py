"""Why a token is refused, for the log; a client is told a fixed text."""


class TokenRefusedError(Exception):
    """A token is not acceptable. Never leaves this package.

    Args:
        reason: why, in words that hold nothing of the token.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UnknownKeyError(TokenRefusedError):
    """A token names a key that is not known: it may be a new one."""

    def __init__(self) -> None:
        super().__init__("its key is not known")
