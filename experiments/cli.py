"""The command line's manners: one plain sentence on stderr for what the caller can mend, and a telling exit code."""

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from absl import app, flags, logging

from aevb.errors import InputError, NonFiniteError

WRONG_CALL = 2  # the caller can mend it: a flag, a config key, a file
NON_FINITE = 3  # training left the numbers
PREEMPTED = 75  # stopped by SIGTERM with everything saved: the same command goes on


def run(main: Callable[[list[str]], None]) -> None:
    """Parse the flags and run `main`; errors of the caller's become a sentence, bugs keep their traceback."""

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.ERROR)
        try:
            if len(argv) > 1:
                raise InputError(f"{argv[1]!r} is not understood: every argument is a --flag=value")
            main(argv)
        except (InputError, NonFiniteError) as error:
            fail(str(error), NON_FINITE if isinstance(error, NonFiniteError) else WRONG_CALL)
        except OSError as error:
            # No space, no permission, a folder where a file should be: the system's words name path and reason.
            fail(f"{error.strerror or error}: {error.filename or 'while writing'}", WRONG_CALL)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser, with whatever ml_collections raises for an override made one sentence."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        return fail(" ".join(str(error).strip("'\"").split()), WRONG_CALL)


def fail(sentence: str, code: int) -> None:
    """Print the sentence on stderr and leave with the code."""
    print(sentence, file=sys.stderr, flush=True)
    sys.exit(code)


class Preemption:
    """Notices SIGTERM. While a run trains it only remembers, so that the loop can save first; else it leaves."""

    def __init__(self) -> None:
        self.training = False
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if not self.training:
            sys.exit(PREEMPTED)
