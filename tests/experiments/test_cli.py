"""The command line's manners: a first signal is remembered, a second is obeyed."""

import os
import signal

import pytest

from experiments import cli


def test_a_first_ctrl_c_lets_the_loop_save_and_a_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with cli.Preemption() as preemption:
        assert preemption.requested == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert preemption.requested == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
