"""The commands as a person starts them, and one finished run to look at."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "experiments/configs/vae.py"
# Digits, 12 to 13 steps an epoch: a run of a second, once its programs are compiled.
SMALL = [
    f"--config={CONFIG}",
    "--config.model.hidden=16",
    "--config.train.num_epochs=3",
    "--config.train.log_every_steps=5",
    "--config.train.eval_every_steps=10",
    "--config.train.checkpoint_every_steps=15",
    "--config.eval.num_samples=20",
]


@dataclasses.dataclass
class Ended:
    """What a call left behind."""

    code: int
    out: str
    err: str
    seconds: float


@dataclasses.dataclass
class Commands:
    """Calls of the command line, each in a process of its own; see command_server.py."""

    server: subprocess.Popen
    folder: pathlib.Path

    def __call__(
        self,
        module: str,
        *args: str,
        fuse: int | None = None,
        watch: str = "",
        sigterm_when: Callable[[], bool] | None = None,
        prelude: str = "",
        **env: str,
    ) -> Ended:
        """Run `experiments.MODULE`; kill it at the `fuse`-th file below `watch`, or SIGTERM it when it is time.

        The `prelude` is Python that is run first.
        """
        told = {"module": module, "args": args, "fuse": fuse, "folder": watch, "env": env, "prelude": prelude}
        (call,) = self.start([told])
        if sigterm_when is not None:
            while not sigterm_when():
                time.sleep(0.005)
            os.kill(call.pid, signal.SIGTERM)
        return call.ended()

    def start(self, calls: list[dict]) -> list["Started"]:
        """Start calls side by side; how each ended is to be asked for in their order, before the next are started."""
        full = []
        for index, call in enumerate(calls):
            paths = {name: str(self.folder / f"{name}_{index}") for name in ("stdout", "stderr")}
            defaults = {"fuse": None, "folder": "", "env": {}, "prelude": ""}
            full.append(defaults | call | paths | {"module": f"experiments.{call['module']}"})
        self.server.stdin.write(json.dumps(full) + "\n")
        self.server.stdin.flush()
        pids = self.server.stdout.readline().split()
        return [Started(self.server, call, int(pid)) for call, pid in zip(full, pids, strict=True)]

    def ok(self, module: str, *args: str, **env: str) -> Ended:
        ended = self(module, *args, **env)
        assert ended.code == 0, ended.err
        return ended


@dataclasses.dataclass
class Started:
    """A call that is under way."""

    server: subprocess.Popen
    call: dict
    pid: int
    started: float = dataclasses.field(default_factory=time.monotonic)

    def ended(self) -> Ended:
        code = int(self.server.stdout.readline())
        out, err = (pathlib.Path(self.call[name]).read_text() for name in ("stdout", "stderr"))
        return Ended(code, out, err, time.monotonic() - self.started)


def clean_environment(cache: pathlib.Path) -> dict[str, str]:
    """The environment of a fresh shell, and a cache of compiled programs that calls share."""
    dropped = ("XLA_FLAGS", "AEVB_DATA_DIR", "JAX_PLATFORMS")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes longer than running here
    }


@pytest.fixture(scope="package", autouse=True)
def quick_compiling() -> Iterator[None]:
    """In this process too: programs that run once are compiled without most optimizations."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.getbasetemp()
    return clean_environment((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled")


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Commands]:
    folder = tmp_path_factory.mktemp("calls")
    with (
        open(folder / "server", "w") as errors,
        subprocess.Popen(
            [sys.executable, pathlib.Path(__file__).parent / "command_server.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment,
        ) as server,
    ):
        assert server.stdout.readline() == "ready\n"
        yield Commands(server, folder)


@pytest.fixture(scope="session")
def finished(command: Commands, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a run that was never stopped; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    command.ok("train", *SMALL, f"--workdir={folder}")
    return folder
