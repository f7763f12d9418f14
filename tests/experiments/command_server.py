"""Runs `python -m MODULE ARGS` again and again, paying for the imports once: one process imports, each call is a fork.

Every call is a process of its own, with its own argv, stdout, stderr, signals and exit status, and runs the module as
`__main__`. A call with a `fuse` is killed with SIGKILL at its n-th change to a file below a folder, by itself, before
the change is made: a kill -9 at a chosen moment.

Reads lines of JSON, each a list of calls that are to run side by side; answers with their pids and, in their order,
when each has ended, its exit status. The `prelude` of a call is Python that is run first.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading

MODULES = ("experiments.train", "aevb.figures", "matplotlib.figure", "sklearn.datasets", "tensorboardX")

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def light(fuse: int, folder: str) -> None:
    lock = threading.Lock()
    left = fuse

    def hook(event: str, args: tuple) -> None:
        nonlocal left
        changes = event in CHANGES or (event == "open" and args[1] is not None and any(c in args[1] for c in "wax+"))
        if not changes or folder not in os.fsdecode(args[0] if isinstance(args[0], (str, bytes)) else str(args[0])):
            return
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def become(call: dict) -> None:
    for number, path in ((0, os.devnull), (1, call["stdout"]), (2, call["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(call["env"])
    if call["fuse"]:
        light(call["fuse"], call["folder"])
    exec(call["prelude"])
    sys.argv = [call["module"], *call["args"]]
    sys.modules.pop(call["module"], None)
    runpy.run_module(call["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for name in (*MODULES, *sys.argv[1:]):
        importlib.import_module(name)
    gc.freeze()
    print("ready", flush=True)
    for line in sys.stdin:
        pids = []
        for call in json.loads(line):
            pids.append(os.fork())
            if pids[-1] == 0:
                become(call)
                break
        if pids[-1] == 0:
            break
        print(*pids, flush=True)
        for pid in pids:
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
