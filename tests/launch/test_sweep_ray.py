"""Sweeps on Ray: killed halfway, a node lost, trials that fail, stopped early, searched; two nodes on this machine.

All but one run a stand-in in the place of experiments.train, which sleeps where that computes.
"""

import csv
import importlib.util
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time

import pytest

from launch import tuning

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install -e '.[launch]'"
)
ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
IMPORTED = ("launch.sweep", "launch.page", "launch.sweep_figures", "experiments.build", "ray.tune", "scipy.special")
PATIENCE = 240  # seconds, on a machine that has other things to do
FILE = f"""
from launch.definition import Budget, Choice, LogUniform, Sweep

def get_sweep():
    return Sweep(config="{ROOT}/experiments/configs/vae.py:digits", ARGUMENTS)
"""


class Calls:
    """Calls of launch.sweep, each a process that is forked from one that has imported all."""

    def __init__(self, folder, address):
        self.folder, self.address = folder, address
        for kind in ("fine", "slow", "non_finite", "crash_once"):
            (folder / kind).mkdir()  # data.dir, from where the sweep is started
        paths = os.pathsep.join([str(ROOT), str(HERE)])
        self.server = subprocess.Popen(
            [sys.executable, ROOT / "tests/experiments/command_server.py", *IMPORTED, "drive_sweep"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        assert self.server.stdout.readline() == "ready\n"

    def begin(self, arguments, workdir, *more, module="drive_sweep"):
        """Start a sweep; its process."""
        file = self.folder / f"{workdir.name}.py"
        file.write_text(FILE.replace("ARGUMENTS", arguments))
        args = [f"--sweep={file}", f"--workdir={workdir}", f"--address={self.address}", *more]
        call = {"module": module, "args": args, "fuse": None, "folder": "", "env": {}, "prelude": ""}
        paths = {name: str(self.folder / name) for name in ("stdout", "stderr")}
        self.server.stdin.write(json.dumps([call | paths]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self):
        """The exit code, what was printed, and the last line of stderr."""
        code = int(self.server.stdout.readline())
        errors = (self.folder / "stderr").read_text().strip().splitlines() or [""]
        return code, (self.folder / "stdout").read_text(), errors[-1]

    def wait_for(self, ready):
        """Until something has come of the call under way, which is not to end before."""
        until = time.monotonic() + PATIENCE
        while not ready():
            assert not select.select([self.server.stdout], [], [], 0.05)[0], (self.folder / "stderr").read_text()
            assert time.monotonic() < until, "nothing came"

    def __call__(self, *given, **named):
        self.begin(*given, **named)
        return self.end()


@pytest.fixture(scope="module")
def cluster():
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "PYTHONPATH": str(ROOT)} | tuning.QUIET
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | quick
    with subprocess.Popen(
        [sys.executable, HERE / "two_nodes.py"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
    ) as process:  # fmt: skip
        process.address = process.stdout.readline().strip()
        assert process.address
        yield process
        process.terminate()


@pytest.fixture(scope="module")
def call(cluster, tmp_path_factory):
    calls = Calls(tmp_path_factory.mktemp("calls"), cluster.address)
    yield calls
    with calls.server:  # whose end comes with that of its stdin
        pass


def steps(root, name):
    path = root / "trials" / f"{name}.steps"
    return list(map(int, path.read_text().split())) if path.exists() else []


def table(root):
    with open(root / "results.csv") as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def ended_at(root):
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("trials/*/summary.json")}


KINDS = """
    trials=[{"data.dir": "fine"}, {"data.dir": "non_finite"}, {"data.dir": "slow"}, {"data.dir": "slow", "seed": 1},
            {"data.dir": "crash_once"}, {"data.dir": "slow", "seed": 2}],
    metric="test nll", budget=Budget(num_epochs=1),
"""


def test_killed_halfway_and_a_node_lost_every_trial_is_done_once(call, cluster, tmp_path):
    root = tmp_path / "kinds"
    slow = [f"dirslow_seed{seed}" for seed in range(3)]
    pid = call.begin(KINDS, root)
    call.wait_for(lambda: len(steps(root, slow[0])) >= 3)
    os.kill(pid, signal.SIGKILL)
    assert call.end()[0] == -signal.SIGKILL
    first = ended_at(root)
    assert "dirfine_seed0" in first
    assert slow[0] not in first

    call.begin(KINDS, root)
    call.wait_for(lambda: len(ended_at(root)) > len(first) and any(0 < len(steps(root, name)) < 6 for name in slow[1:]))
    cluster.send_signal(signal.SIGUSR1)
    code, _, error = call.end()
    assert cluster.stdout.readline() == "killed\n"
    assert code == 1, error
    assert error.startswith("1 of 6 trials failed, dirnon_finite_seed0")
    assert "step 4 has loss nan: the run stops here" in error
    assert {name: row["status"] for name, row in table(root).items()} == {
        **{name: "finished" for name in ("dirfine_seed0", "dircrash_once_seed0", *slow)},
        "dirnon_finite_seed0": "failed",
    }
    assert {name: ended_at(root)[name] for name in first} == first
    assert steps(root, "dirfine_seed0") == list(range(1, 9))
    assert steps(root, "dircrash_once_seed0") == [1, 2, 3, 4, 4, 5, 6, 7, 8]
    for name in slow:  # whoever was killed saved, and the next start went on from there
        assert steps(root, name) == list(range(1, 9)), name
    assert "step 4 has loss nan" in (root / "sweep.html").read_text()

    before = {path: path.stat().st_mtime_ns for path in root.glob("trials/**/*")}
    code, _, error = call(KINDS, root)
    assert (code, error[:20]) == (1, "1 of 6 trials failed")
    assert {path: path.stat().st_mtime_ns for path in root.glob("trials/**/*")} == before


ASHA = """
    grid={"model.latent_dim": [8, 16, 2, 4]},
    metric="validation elbo", budget=Budget(num_epochs=0.6, grace_epochs=0.2, reduction=2),
"""


def test_the_bad_are_stopped_early_and_a_sigterm_saves(call, tmp_path):
    root = tmp_path / "early"
    told = ASHA.replace("[8, 16, 2, 4]", "[8, 16, 2, 4], 'data.dir': ['slow']")
    pid = call.begin(told, root)
    call.wait_for(lambda: len(steps(root, "latent_dim8_dirslow")) >= 3)
    os.kill(pid, signal.SIGTERM)
    code, _, error = call.end()
    assert (code, error[:25]) == (75, "stopped by SIGTERM, saved")
    made = steps(root, "latent_dim8_dirslow")
    assert 3 <= len(made) < 8
    code, out, error = call(told, root)
    assert (code, error) == (0, ""), out
    assert steps(root, "latent_dim8_dirslow") == list(range(1, 9))
    found = table(root)
    assert [row["status"] for row in found.values()] == ["finished", "finished", "stopped early", "stopped early"]
    assert len(steps(root, "latent_dim2_dirslow")) < 8
    # Again: it is known who was stopped, and nobody goes on.
    before = ended_at(root)
    assert call(told, root)[0] == 0
    assert ended_at(root) == before


SEARCH = """
    distributions={"model.latent_dim": LogUniform(2, 64)}, search="optuna", metric="test nll",
    budget=Budget(num_epochs=1, num_trials=NUM),
"""


def test_optuna_goes_on_from_what_it_knows(call, tmp_path):
    root = tmp_path / "search"
    assert call(SEARCH.replace("NUM", "3"), root)[0] == 0
    first = ended_at(root)
    code, out, error = call(SEARCH.replace("NUM", "5"), root)
    assert (code, error) == (0, ""), out
    assert {name: ended_at(root)[name] for name in first} == first
    assert json.loads((root / "sweep.json").read_text())["drawn"] == 5  # some of them twice, it may be
    assert f">{len(table(root))} finished<" in (root / "sweep.html").read_text()
    assert all(steps(root, name) == list(range(1, 9)) for name in ended_at(root))
    code, _, error = call(SEARCH.replace("test nll", "test elbo").replace("NUM", "5"), root)
    assert code == 2
    assert "holds another sweep (metric: 'test nll' there and 'test elbo' here)" in error


REAL = """
    overrides={"model.hidden": (16,), "train.log_every_steps": 5, "train.eval_every_steps": 10,
               "train.checkpoint_every_steps": 15, "eval.num_samples": 20},
    grid={"seed": [1]}, metric="test nll", budget=Budget(num_epochs=2),
"""


def test_with_experiments_train_itself(call, tmp_path):
    root = tmp_path / "real"
    code, out, error = call(REAL, root, module="launch.sweep")
    assert (code, error) == (0, ""), out
    for name, row in table(root).items():
        evaluation = json.loads((root / "trials" / name / "evaluation.json").read_text())
        assert (row["status"], float(row["test nll"])) == ("finished", evaluation["nll"])
        assert f"--workdir={root / 'trials' / name}" in row["command"]
    assert list((root / "compiled").glob("*/*"))
    # More than any node has, refused before anything is made.
    code, _, error = call(REAL, tmp_path / "none", "--cpus_per_trial=99", module="launch.sweep")
    assert (code, error) == (2, "--cpus_per_trial is 99, and no node has more than 1: give at most as many")
    assert not (tmp_path / "none").exists()
