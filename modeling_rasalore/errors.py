"""What an error says, in one line: lists of failures and the command line show no more."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
