"""The command line's manners: a first signal is remembered, a second is obeyed."""

import errno
import os
import signal

import pytest

from experiments import cli


@pytest.fixture
def hears_ctrl_c():
    """As a command on a terminal does; what a shell puts in the background does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_first_ctrl_c_lets_the_loop_save_and_a_second_does_not(hears_ctrl_c):
    before = signal.getsignal(signal.SIGINT)
    with cli.Preemption() as preemption:
        assert preemption.requested == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_did_not_come_in_time_is_worth_another_start():
    """Orbax's words where another process stands still."""
    sentence, code = cli.explained(TimeoutError("Timed out while waiting for async_write_complete barrier."))
    assert code == cli.PREEMPTED
    assert "Timed out while waiting for async_write_complete barrier." in sentence
    assert cli.explained(ConnectionResetError(104, "Connection reset by peer"))[1] == cli.PREEMPTED
    assert cli.explained(OSError(errno.ESTALE, "Stale file handle"))[1] == cli.PREEMPTED
    assert cli.explained(PermissionError(13, "Permission denied", "/runs"))[1] == cli.WRONG_CALL
