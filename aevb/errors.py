"""The errors that a person meets: a wrong input, a run that left the numbers, a sampler that does not sample."""


class InputError(ValueError):
    """Something the caller gave is wrong.

    The message is one sentence: what is wrong, which value or path, and what to do about it. The command line
    prints it alone, without a traceback; every other exception is a bug and keeps its traceback.
    """


class NonFiniteError(ArithmeticError):
    """Training produced a loss or a gradient that is not finite; the message names the step."""


class SamplingError(ArithmeticError):
    """Markov chains diverged or never moved, so that their draws stand for nothing; the message has the numbers."""
