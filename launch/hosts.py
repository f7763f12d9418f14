"""What runs on the hosts of a TPU slice, over ssh: shell scripts, each of which ends by saying `aevb-host NAME WORDS`.

A run lives in ~/aevb-run of each host: `command`, `log`, `pid`, and `exit_code` when it has ended. It holds a lock as
long as any process of it lives, so that whether it runs is known whatever became of ssh, of a pid or of the machine.
"""

import re
import shlex
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from aevb.errors import InputError
from launch import gcloud
from launch.gcloud import GcloudError, Runner, Target

ROOT = Path(__file__).resolve().parents[1]
CHECKOUT = ("aevb", "experiments", "launch", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
PYTHON = "$HOME/aevb/.venv/bin/python"
PORT = 6379  # of Ray's head
INSTALL_SECONDS = 3600
BARE = "not set up"  # a host

BUSY = """\
mkdir -p ~/aevb-run && cd ~/aevb-run
if ! flock -ns lock true; then echo "aevb-host $(hostname) running $(cat command)"; exit 0; fi
"""
# The image's own Python may be older than what the library needs: uv brings one.
INSTALL = (
    BUSY
    + """\
set -e
mkdir -p ~/aevb && cd ~/aevb && rm -rf aevb experiments launch && tar -xzf ~/aevb.tar.gz
python3 -m pip install --quiet --user --upgrade uv
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[gcs,launch,tfds]' 'jax[tpu]'
echo "aevb-host $(hostname) ready jax $(.venv/bin/python -c 'import jax; print(jax.__version__)')"
"""
)
# What has started holds the lock before this says so. It waits for those who look, who share the lock for a moment.
# Of two who start at once, one gets the lock, and writes what it is: flock, the shell's parent, leads their group.
# TERM is for the command, whose exit code is then still written.
START = (
    BUSY
    + """\
rm -f exit_code
setsid nohup flock -w 30 lock sh -c 'echo $PPID > pid; trap : TERM; rm -f exit_code; printf "%s\\n" "$1" > command
echo "== $(date -u) $1"; cd ~/aevb; eval "$1"
code=$?; cd ~/aevb-run; echo $code > exit_code.new; mv exit_code.new exit_code' sh COMMAND >> log 2>&1 < /dev/null &
for i in $(seq 100); do if test -e exit_code || ! flock -ns lock true; then break; fi; sleep 0.1; done
if flock -ns lock true && ! test -e exit_code; then echo "the run did not start on $(hostname)" >&2; exit 1; fi
echo "aevb-host $(hostname) started"
"""
)
STATE = (
    BUSY
    + f"""\
if ! test -x ~/aevb/.venv/bin/python; then s="{BARE}"; elif ! test -e command; then s=idle
elif test -e exit_code; then s="exited $(cat exit_code)"; else s=died; fi
echo "aevb-host $(hostname) $s"
"""
)
STOP = """\
cd ~/aevb-run
for s in TERM KILL; do
  if ! flock -ns lock true; then kill -s $s -- -$(cat pid); fi
  flock -sw 60 lock true && break
done
echo "aevb-host $(hostname) stopped"
"""
LOG = "tail -n {lines} {follow} ~/aevb-run/log"
# A trial whose worker goes gets SIGTERM from launch/held.py and saves; Ray would kill it at once.
RAY = "export RAY_kill_child_processes_on_worker_exit=0\ncd ~/aevb\n"
RAY_HEAD = (
    RAY
    + """\
.venv/bin/ray stop --force > /dev/null 2>&1
{environment} .venv/bin/ray start --head --port={port} --resources='{resources}' --disable-usage-stats || exit 1
echo "aevb-host $(hostname) head $(hostname -I | cut -d' ' -f1)"
"""
)
RAY_WORKER = (
    RAY
    + """\
if hostname -I | grep -qwF {head}; then echo "aevb-host $(hostname) head"; exit 0; fi
.venv/bin/ray stop --force > /dev/null 2>&1
{environment} .venv/bin/ray start --address={head}:{port} --resources='{resources}' --disable-usage-stats || exit 1
echo "aevb-host $(hostname) worker"
"""
)


def ask(
    target: Target, run: Runner, script: str, supposed: str, *, everywhere: bool = True, seconds: float = gcloud.SECONDS
) -> dict[str, str]:
    """What each host said at the end of a script.

    Raises:
      GcloudError: it failed on one, or not every host has said something.
    """
    told = run(gcloud.ssh(target.name, target.zone, script, everywhere), seconds=seconds, repeated=script == STATE)
    expected = target.hosts if everywhere else 1
    if run.dry_run:
        return {f"{target.name}-host-{i}": supposed for i in range(expected)}
    said = dict(re.findall(r"^aevb-host (\S+) (.*)$", told, re.MULTILINE))
    if len(said) != expected:
        raise GcloudError(
            f"{len(said)} of {expected} hosts of {target.name} answered ({', '.join(sorted(said)) or 'none'}): see "
            "with status whether all are up"
        )
    return said


def install(target: Target, run: Runner) -> None:
    """Put this checkout on every host, with JAX for TPUs.

    Raises:
      InputError: a run is under way on a host; a host could not be reached, or what it lacks not be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "aevb.tar.gz"
        if not run.dry_run:
            pack(archive)
        run(gcloud.send(target, str(archive), "aevb.tar.gz"))
    if not run.dry_run:
        print(f"installing on {target.hosts} host(s) of {target.name}, which takes minutes", flush=True)
    said = ask(target, run, INSTALL, "ready", seconds=INSTALL_SECONDS)
    busy = [host for host, words in said.items() if words.startswith("running")]
    if busy:
        raise InputError(f"a run is under way on {', '.join(busy)}: set up when it has ended, or delete {target.name}")
    if not run.dry_run:
        print(*[f"{host}: {words}" for host, words in sorted(said.items())], sep="\n", flush=True)


def pack(archive: Path) -> None:
    """Write this checkout's code into an archive, without what runs have left."""

    def clean(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if {"__pycache__", "results"} & set(Path(info.name).parts) else info

    with tarfile.open(archive, "w:gz") as file:
        for name in CHECKOUT:
            file.add(ROOT / name, arcname=name, filter=clean)


def command(module: str, arguments: Sequence[str]) -> str:
    """A line for the hosts' shell that runs a module of the checkout."""
    return f"PYTHONUNBUFFERED=1 {PYTHON} -m {module} {shlex.join(arguments)}"


def start(
    target: Target, run: Runner, line: str, *, everywhere: bool, before: Callable[[], None] = lambda: None
) -> None:
    """Start a command on the hosts, to go on without us; what is left of one that ended on some of them is stopped.

    Args:
      target, run: the machines, and what runs commands.
      line: the command.
      everywhere: on every host, or on the first of the first slice.
      before: what it needs there, done where it does not run yet.

    Raises:
      InputError: another command is running, or the hosts are not set up.
      GcloudError: a host cannot be reached, or `before` came to nothing.
    """
    said = ask(target, run, STATE, "idle", everywhere=everywhere)
    bare = sorted(host for host, words in said.items() if words == BARE)
    if bare:
        raise InputError(f"{', '.join(bare)} of {target.name} is {BARE}: run setup first")
    running = {host: words.removeprefix("running ") for host, words in said.items() if words.startswith("running")}
    others = set(running.values()) - {line}
    if others:
        raise InputError(
            f"{target.name} runs something else ({others.pop()}): wait for its end, which status tells, or choose "
            "other machines"
        )
    if len(running) == len(said):
        print(f"{target.name} runs this already", flush=True)
        return
    if running:
        ask(target, run, STOP, "stopped", everywhere=everywhere)
    before()
    ask(target, run, START.replace("COMMAND", shlex.quote(line)), "started", everywhere=everywhere)


def states(target: Target, run: Runner, *, everywhere: bool = True) -> dict[str, str]:
    """What the run does on each host: running, `exited CODE`, died (without a code), idle (none was started), BARE."""
    said = ask(target, run, STATE, "exited 0", everywhere=everywhere)
    return {host: words.split()[0] if words.startswith("running") else words for host, words in said.items()}


def start_ray(target: Target, run: Runner, tpus_per_trial: int) -> None:
    """Start Ray on every host, the head on the first of the first slice.

    Raises:
      GcloudError: it does not start on one.
    """
    chips = target.accelerator.chips_per_host
    how = {"port": PORT, "resources": f'{{"TPU": {chips}}}', "environment": _alone(target, tpus_per_trial)}
    (words,) = ask(target, run, RAY_HEAD.format_map(how), "head HEAD", everywhere=False).values()
    head = words.split()[1]
    if target.hosts > 1:
        ask(target, run, RAY_WORKER.format_map(how | {"head": head}), "worker")


def _alone(target: Target, tpus_per_trial: int) -> str:
    """Variables that make all chips of a host a slice of their own: else libtpu waits for the slice's other hosts.

    For a part of a host's chips Ray sets the like itself.
    """
    if target.accelerator.hosts == 1 or tpus_per_trial < target.accelerator.chips_per_host:
        return ""
    return "TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1"  # slices of several hosts have 4 on each
