"""The one exception that bad input raises."""


class DdsimError(ValueError):
    """Bad input: one line that says which file, row or option, what is wrong and what to do."""
