"""What is said and done when JAX's runtime aborts the process, which is how it answers a lost coordinator."""

import contextlib
import ctypes
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import NoReturn

from experiments import cli


class Aborts:
    """Answers SIGABRT from now on: `explain` gives the sentence and the exit code, or None of a crash of our own.

    Nothing of Python hears of SIGABRT in time, so the handler is C's, and Python is called from it.
    """

    def __init__(self) -> None:
        self.explain: Callable[[], tuple[str, int] | None] = lambda: None
        self._stderr, self._kept = 2, None  # the second one has what libraries said, where that is kept
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._handle)
        install = ctypes.CDLL(None).signal
        install.restype = ctypes.c_void_p
        install(int(signal.SIGABRT), self._handler)

    def _handle(self, signum: int) -> None:
        explained = self.explain()
        if explained is not None:
            self.end(*explained)
        os.write(self._stderr, self._native_words())  # it stays a crash

    def end(self, sentence: str, code: int) -> NoReturn:
        """Say why, and leave at once."""
        self.say(sentence)
        cli.leave(code)

    def say(self, sentence: str) -> None:
        """Print a sentence on one line of stderr, also while that is kept from libraries."""
        os.write(self._stderr, f"{' '.join(sentence.split())}\n".encode())

    @contextlib.contextmanager
    def native_words_kept(self) -> Iterator[None]:
        """Keep what libraries write to stdout and stderr out of sight, but for an abort, whose reason it may tell."""
        with tempfile.TemporaryFile() as kept:
            before = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
            for descriptor in before:
                os.dup2(kept.fileno(), descriptor)
            self._stderr, self._kept = before[2], kept.fileno()
            try:
                yield
            finally:
                for descriptor, copy in before.items():
                    os.dup2(copy, descriptor)
                self._stderr, self._kept = 2, None
                for copy in before.values():
                    os.close(copy)

    def reason(self) -> str:
        """What JAX gave as the reason of the abort, in brackets; nothing where it is that the time is over."""
        fatal = self._native_words().decode(errors="replace").split("*** Check failure")[0]
        words = " ".join(fatal.split("absl::Status:")[-1].split())[-300:]
        return f"({words})" if words and "DEADLINE_EXCEEDED" not in words else ""

    def _native_words(self) -> bytes:
        if self._kept is None:
            return b""
        size = os.fstat(self._kept).st_size
        return os.pread(self._kept, 2**14, max(size - 2**14, 0))
