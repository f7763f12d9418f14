"""`python -m launch.sweep` with the stand-in in the place of experiments.train."""

import pathlib
import runpy
import sys

from launch import watching

if __name__ == "__main__":
    watching.COMMAND = (str(pathlib.Path(__file__).with_name("stand_in_train.py")),)
    sys.argv[0] = "launch.sweep"
    sys.modules.pop("launch.sweep", None)
    runpy.run_module("launch.sweep", run_name="__main__", alter_sys=True)
