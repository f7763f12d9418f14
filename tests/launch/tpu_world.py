"""The world of tests of launch.tpu_vm: a stand-in gcloud on the PATH, and hosts with stand-ins of their own."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from launch import gcloud, hosts, watch
from launch.gcloud import Runner, Target

ROOT = pathlib.Path(__file__).parents[2]
ZONE = "us-west4-a"
NAMED = ["--name=vae", f"--zone={ZONE}"]
MACHINES = [*NAMED, "--accelerator_type=v5litepod-16"]
CONFIG = ["--config=experiments/configs/vae.py", "--config.train.batch_size=128"]
TRAIN = ["--", *CONFIG, "--workdir=gs://runs/digits"]
SWEEP = ["--", "--sweep=launch/sweeps/latent_dim.py", "--workdir=gs://runs/sweep"]
VERBS = ("create", "delete", "describe", "ssh", "scp", "rsync", "get-value")
WAIT = "while ! test -e $STAND_IN/go; do sleep 0.02; done"  # as long as the test wants
ODD = "--x=a 'b' $HOME"  # an argument that a shell must not touch
ONCE = {f"vae-w-{i}": 1 for i in range(4)}
TWICE = dict.fromkeys(ONCE, 2)
# Of every host: its name, its address, and an image's python3, which has pip and uv make a virtual environment.
HOSTNAME = """\
#!/bin/sh
if test "$1" = -I; then echo "10.0.0.1$(echo $HOST | tr -cd 0-9) 172.17.0.1"; else echo $HOST; fi
"""
PYTHON3 = """\
#!/bin/sh
echo "python3 $*" >> ~/image.log
if test "$3" = venv; then mkdir -p .venv/bin; cp $STAND_IN/venv/python $STAND_IN/venv/ray .venv/bin/; fi
"""
# Of the virtual environment: what is trained is the script `job`, told its arguments and how often it was started.
PYTHON = """\
#!/bin/sh
if test "$1" = -c; then echo 0.10.2; exit 0; fi
echo "$*" >> ~/started
exec sh $STAND_IN/job $(wc -l < ~/started)
"""
RAY = """\
#!/bin/sh
if test "$1 $HOST" = "start $(cat $STAND_IN/no_ray 2>&1)"; then echo "no Ray here" >&2; exit 1; fi
echo "$TPU_PROCESS_BOUNDS $TPU_CHIPS_PER_PROCESS_BOUNDS ray $*" >> ~/ray.log
"""
# Forks once for each call, after the imports; tells of each its arguments, exit code, stdout and stderr.
CALLS = """
import json, os, runpy, sys, tempfile
from experiments import cli, settings
from launch import watch
watch.POLL = 0.05
for arguments in json.loads(sys.argv[1]):
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(files):
            os.dup2(file.fileno(), number + 1)
        sys.argv = ["launch.tpu_vm", *arguments]
        runpy.run_module("launch.tpu_vm", run_name="__main__", alter_sys=True)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    told = [file.seek(0) or file.read() for file in files]
    print(json.dumps([arguments, code, *told]), flush=True)
"""


@dataclasses.dataclass
class World:
    """The folder of stand_in_gcloud.py, and what a test does to it."""

    folder: pathlib.Path

    def make(self) -> "World":
        for name, text in {
            "bin/hostname": HOSTNAME,
            "bin/python3": PYTHON3,
            "venv/python": PYTHON,
            "venv/ray": RAY,
            "path/gcloud": f'#!/bin/sh\nexec {sys.executable} -SEs {ROOT}/tests/launch/stand_in_gcloud.py "$@"\n',
        }.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        (self.folder / "project").write_text("lab")
        self.job("exit 0")
        return self

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDSDK_")}
        path = f"{self.folder}/path:{os.environ['PATH']}"
        return kept | {"PATH": path, "STAND_IN": str(self.folder), "PYTHONPATH": str(ROOT)}

    def job(self, script: str) -> None:
        """What a run does; $1 is how often it has been started on its host."""
        (self.folder / "job").write_text(script + "\n")

    def put(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value))

    def queue(self) -> dict:
        path = self.folder / "queue.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def take(self, node: str, name: str = "vae") -> None:
        """Google takes a slice away: its processes end without a word, and it answers no more."""
        queue = self.queue()
        queue[name]["nodes"][node] = "PREEMPTED"
        self.put("queue.json", queue)
        for home in (self.folder / "hosts").glob(f"{node}-w-*"):
            self.kill(home.name)

    def kill(self, host: str) -> None:
        """End all of a run on a host at once, its shell too."""
        pid = int((self.folder / "hosts" / host / "aevb-run/pid").read_text())
        os.killpg(pid, signal.SIGKILL)

    def clear(self) -> None:
        """End what still runs on hosts."""
        for path in (self.folder / "hosts").glob("*/aevb-run/pid"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGKILL)

    def calls(self) -> list[str]:
        """What gcloud was asked to do, in a word each; what is asked several times in a row stands there once."""
        path, words = self.folder / "calls.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else []:
            arguments = json.loads(line)
            script = next((each for each in arguments if each.startswith("--command=")), "")
            kinds = {"uv venv": "install", "setsid": "start", "for s in TERM": "stop", "s=died": "state"}
            kinds |= {"ray start --head": "ray head", "ray start --address": "ray worker", "tail": "log"}
            verb = next((arguments[i] for i in range(len(arguments)) if arguments[i] in VERBS), arguments[0])
            words.append(next((kind for mark, kind in kinds.items() if mark in script), verb))
        return [one for one, before in zip(words, ["", *words], strict=False) if one != before]

    def text(self, path: str) -> str:
        return (self.folder / path).read_text()

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """`python -m launch.tpu_vm`, which looks every 0.05 s and not every minute."""
        (ended,) = self.run_all([arguments])
        return ended

    def run_all(self, calls: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess]:
        """The same, one after another, each in a process of its own that need not import what it needs."""
        ended = subprocess.run(
            [sys.executable, "-c", CALLS, json.dumps(calls)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
        )
        assert ended.returncode == 0, ended.stderr
        told = [json.loads(line) for line in ended.stdout.splitlines()]
        assert len(told) == len(calls)
        return [subprocess.CompletedProcess(*each) for each in told]


def until(happened: object, seconds: float = 60) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def placed(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A world in whose place this process is too."""
    made = World(folder).make()
    for name in ("PATH", "STAND_IN"):
        monkeypatch.setenv(name, made.env[name])
    monkeypatch.setattr(hosts, "pack", lambda archive: tarfile.open(archive, "w:gz").close())  # of this process alone
    yield made
    made.clear()


class Clock:
    """The sleep of launch.watch: remembers how long, and lets something happen meanwhile."""

    def __init__(self, *happens: Callable[[], object]) -> None:
        self.happens, self.slept = list(happens), []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        assert len(self.slept) < 100, "it waits for ever"
        if self.happens:
            self.happens.pop(0)()
        time.sleep(0.05)


def running(target: Target, arguments: list[str]) -> watch.Job:
    """What starts a training run on the hosts, or finds it."""
    line = hosts.command("experiments.train", arguments)
    return watch.Job(lambda: hosts.start(target, Runner(), line, everywhere=True))


def made(world: World, target: Target, job: str) -> watch.Job:
    """Machines that are set up, and what starts a run on them."""
    Runner()(gcloud.create(target))
    hosts.install(target, Runner())  # of an empty checkout
    world.job(job)
    return running(target, [ODD])


def started(world: World) -> dict[str, int]:
    """How often the run was started on each host."""
    return {path.parent.name: len(path.read_text().splitlines()) for path in (world.folder / "hosts").glob("*/started")}
