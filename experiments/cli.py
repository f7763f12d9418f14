"""The command line's manners: one plain sentence on stderr for what the caller can mend, and a telling exit code."""

import difflib
import errno
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from absl import app, flags, logging

from aevb.errors import InputError, NonFiniteError, SamplingError

WRONG_CALL = 2  # the caller can mend it: a flag, a config key, a file
NON_FINITE = 3  # training left the numbers, or its chains do not sample
PREEMPTED = 75  # stopped by a signal or by what may pass, nothing broken: the same command goes on
STORES = ("gcsfs.", "google.auth.", "google.api_core.", "google.cloud.", "aiohttp.")  # whose errors are of gs://
STOPS = (signal.SIGTERM, signal.SIGINT)


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main` on the other arguments; errors of the caller's become a sentence, bugs do not."""

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.ERROR)
        try:
            main(argv[1:])
        except Exception as error:
            told = explained(error)
            if told is None:
                raise
            fail(*told)

    app.run(guarded, flags_parser=_parse)


class Interrupted(Exception):
    """Nothing is known to be wrong here: the same command, started again, may come further."""


class Stopped(Interrupted):
    """The run was stopped by a signal, with everything saved; the message says by which, and where it goes on."""


def explained(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit code of what the caller can mend or wait for; None of a bug."""
    if isinstance(error, InputError):
        return str(error), WRONG_CALL
    if isinstance(error, NonFiniteError | SamplingError):
        return str(error), NON_FINITE
    if isinstance(error, Interrupted):
        return str(error), PREEMPTED
    if (of_store := _error_of_store(error)) is not None:
        return of_store
    if _passes(error):
        return f"what was waited for did not come ({error}): run the same command to go on", PREEMPTED
    if isinstance(error, OSError):
        # No space, no permission, a folder where a file should be: the system's words name path and reason.
        what = error.filename or "a file"
        sentence = f"{what} cannot be used ({error.strerror or error}): correct the path or make room, and repeat"
        return sentence, WRONG_CALL
    return None


def _passes(error: BaseException) -> bool:
    """Whether an error is of a disk that hangs or was mounted anew, of a connection, or of another process."""
    stale = isinstance(error, OSError) and error.errno == errno.ESTALE
    return stale or isinstance(error, TimeoutError | ConnectionError)


def _error_of_store(error: BaseException) -> tuple[str, int] | None:
    """The sentence and the exit code of an error of gs://, where that is in use; None of any other."""
    if "gcsfs" not in sys.modules:  # see workdir.at
        return None
    import gcsfs.retry
    from google.api_core import exceptions, retry

    words = f"{type(error).__name__}: {error}"
    passing = gcsfs.retry.is_retriable(error) or retry.if_transient_error(error)
    if passing or isinstance(error, exceptions.ServerError):
        return f"the store does not answer as it should ({words}): run the same command to go on", PREEMPTED
    if type(error).__module__.startswith(STORES):
        return f"the store cannot be used ({words}): look at the permissions, and repeat", WRONG_CALL
    return None


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, which leaves the arguments that are no flags to `main`."""
    try:
        return flags.FLAGS(argv, known_only=True)
    except flags.Error as error:
        # Python's own words for a number that is none speak of functions.
        words = re.sub(r"(invalid literal for int|could not convert string to float).*", "not a number", str(error))
        return fail(f"{words}: correct it, or see --help", WRONG_CALL)


def refuse(arguments: list[str]) -> None:
    """Refuse arguments that nobody understands, and an empty folder, which would be the current one.

    Raises:
      InputError: there are some.
    """
    if "workdir" in flags.FLAGS and flags.FLAGS.workdir == "":
        raise InputError("--workdir is missing: give for example --workdir=runs/mine")
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0]
        own = sorted(flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]))
        near = difflib.get_close_matches(name, list(flags.FLAGS), 1)
        advice = f"do you mean --{near[0]}?" if near else f"the flags here are --{', --'.join(own)}"
        raise InputError(f"{argument!r} is not understood: {advice}")


def required(name: str, example: str) -> str:
    """The value of a flag that must be given.

    Raises:
      InputError: it is not.
    """
    if not flags.FLAGS[name].value:
        raise InputError(f"--{name} is missing: give for example --{name}={example}")
    return flags.FLAGS[name].value


def fail(sentence: str, code: int) -> NoReturn:
    """Print the sentence on one line of stderr and leave with the code, at once.

    What libraries say while the interpreter comes down (of reads that failed, of threads) would bury the sentence.
    """
    say(sentence)
    sys.stdout.flush()
    leave(code)


def say(sentence: str) -> None:
    """Print a sentence on one line of stderr."""
    print(" ".join(sentence.split()), file=sys.stderr, flush=True)


def leave(code: int) -> NoReturn:
    """Exit without coming down gently, but leave no worker process behind."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(code)


def leave_on_signal(fail: Callable[[str, int], None] | None = None) -> None:
    """From now on SIGTERM or Ctrl-C ends the process at once: every file is written whole or not at all.

    Raising in a handler would not do: what runs at that moment may swallow the exception.

    Args:
      fail: how to end it, given a sentence and the exit code; by itself alone unless given. It comes back only where
        the process is ending already.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        sentence = f"stopped by {signal.Signals(signum).name}: run the same command to go on"
        if fail is not None:
            fail(sentence, PREEMPTED)
            return
        os.write(2, f"{sentence}\n".encode())
        leave(PREEMPTED)

    for signum in STOPS:
        signal.signal(signum, stop)


class Preemption:
    """Inside this context a first SIGTERM or Ctrl-C is only remembered, so that the loop can save; a second is not."""

    def __init__(self) -> None:
        self.requested = ""  # the signal's name

    def __enter__(self) -> "Preemption":
        self._before = {signum: signal.signal(signum, self._remember) for signum in STOPS}
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.requested = signal.Signals(signum).name
        signal.signal(signum, self._before[signum])
