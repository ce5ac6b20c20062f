"""The error that a command shows to its user as one line."""


class UserError(ValueError):
    """Input that cannot be used.

    The message says what is wrong and, if possible, how to mend it. Any other exception is a fault of this project and keeps its
    traceback.
    """


def reason_of(error: Exception) -> str:
    """Return the type and the message of an error of another library on one line, cut after 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
