"""Run a command that ends when whoever started it does, on the cores that it is given.

    python launch/held.py PARENT CORES COMMAND ARGUMENT ...

PARENT is the process that starts this, CORES is like 0,1, or empty for all. On Linux the command gets SIGTERM when the
parent is gone, however it went, so that it saves and leaves; elsewhere it goes on.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, cores, *command = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != int(parent):  # it went before this could be asked for
            sys.exit(75)
        if cores:
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execv(command[0], command)
