"""The one exception that bad input raises."""


class DdsimError(ValueError):
    """Bad input: one line that says which file, row or option, what is wrong and what to do.

    Examples
    --------
    >>> import ddsim
    >>> ddsim.draft_tree([[0.5]], 1)
    Traceback (most recent call last):
    ddsim.errors.DdsimError: logprobs at depth 1 are positive; log-probabilities are natural logarithms of probabilities, at most 0
    """
