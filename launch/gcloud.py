"""The `gcloud` command line: argument lists as pure functions of what is asked for, and the running of them.

Every command is printed, quoted for a shell, before it runs. `queued-resources ssh` has a trap: a slice whose hosts it
cannot prepare is a warning to it, and its exit code is 0. So what runs on hosts says so, and hosts.py counts.
"""

import dataclasses
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

from aevb.errors import InputError
from launch.accelerators import Accelerator

ERROR = "ERROR: (gcloud"  # begins what it says of a failure of its own, not of a host's
QUEUE = ("gcloud", "compute", "tpus", "queued-resources")
SECONDS = 600  # no call takes longer that does not install or follow something
# Of gcloud's own errors, those that the same call meets again: rights, names, billing, quota (but of calls a minute).
PERMANENT = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|has not been used|not enabled|[Bb]illing|Quota limit|Quota '|"
    "invalid_grant|Reauthentication|active account|Invalid choice|unrecognized arguments"
)
# Of the others, those that the same call meets again as long as nobody changes what is there.
STANDING = re.compile("ALREADY_EXISTS|NOT_FOUND|not found|No such file|Did not find")


@dataclasses.dataclass(frozen=True)
class Target:
    """The machines of one queued resource: its name, zone and slices, which are of one type."""

    name: str
    zone: str
    accelerator: Accelerator
    spot: bool = False
    num_slices: int = 1

    @property
    def hosts(self) -> int:
        return self.accelerator.hosts * self.num_slices

    @property
    def nodes(self) -> list[str]:
        """What Google calls the slices."""
        return [self.name] if self.num_slices == 1 else [f"{self.name}-{i}" for i in range(self.num_slices)]


class GcloudError(InputError):
    """A call that failed, and may succeed when repeated; `absent` where gcloud says that there is no such thing."""

    def __init__(self, sentence: str, absent: bool = False) -> None:
        super().__init__(sentence)
        self.absent = absent


def project() -> list[str]:
    """Which project pays."""
    return ["gcloud", "config", "get-value", "project"]


def create(target: Target) -> list[str]:
    """Of a queued resource, which waits for its machines; from then on they cost."""
    slices = [f"--node-count={target.num_slices}", f"--node-prefix={target.name}"]
    return [
        *(*QUEUE, "create", target.name, f"--zone={target.zone}"),
        f"--accelerator-type={target.accelerator.name}",
        f"--runtime-version={target.accelerator.runtime}",
        *(slices if target.num_slices > 1 else [f"--node-id={target.name}"]),
        *(["--spot"] if target.spot else []),
        "--quiet",
    ]


def delete(name: str, zone: str) -> list[str]:
    """Of the queued resource and its machines."""
    return [*QUEUE, "delete", name, f"--zone={zone}", "--force", "--quiet"]


def state(name: str, zone: str) -> list[str]:
    """Of the queued resource: ACCEPTED, WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED, ..."""
    return [*QUEUE, "describe", name, f"--zone={zone}", "--format=value(state.state)", "--quiet"]


def node_state(node: str, zone: str) -> list[str]:
    """Of one slice: READY, PREEMPTED, ..."""
    return ["gcloud", "compute", "tpus", "tpu-vm", "describe", node, f"--zone={zone}", "--format=value(state)"]


def ssh(name: str, zone: str, script: str, everywhere: bool) -> list[str]:
    """A shell script on every host, or on the first of the first slice."""
    which = "all" if everywhere else "0"
    return [*QUEUE, "ssh", name, f"--zone={zone}", *_on(which), f"--command={script}", "--quiet"]


def send(target: Target, file: str, name: str) -> list[str]:
    """A file into the home folder of every host."""
    return [*QUEUE, "scp", file, f"{target.name}:{name}", f"--zone={target.zone}", *_on("all"), "--quiet"]


def bring(name: str, zone: str, path: str, folder: str) -> list[str]:
    """A folder of the first host into a folder here."""
    return [*QUEUE, "scp", f"{name}:{path}", folder, f"--zone={zone}", "--recurse", "--quiet"]


def bring_from_store(path: str, folder: str) -> list[str]:
    """A folder of a bucket into a folder here."""
    return ["gcloud", "storage", "rsync", path, folder, "--recursive"]


@dataclasses.dataclass(frozen=True)
class Runner:
    """Runs commands, each printed first; with `dry_run` it prints alone, and what is asked has a made-up answer."""

    dry_run: bool = False
    printed: set[str] = dataclasses.field(default_factory=set)

    def show(self, arguments: Sequence[str], repeated: bool = False) -> None:
        """Print a command for a shell; a question that is repeated for hours is printed once."""
        line = f"+ {shlex.join(arguments)}"
        if not repeated or line not in self.printed:
            print(line, flush=True)
        self.printed.add(line)

    def __call__(
        self, arguments: Sequence[str], supposed: str = "", seconds: float = SECONDS, repeated: bool = False
    ) -> str:
        """What a command printed.

        Args:
          arguments: of the command.
          supposed: the answer of a dry run.
          seconds: to wait at most.
          repeated: whether it is asked again and again, and printed once.

        Raises:
          GcloudError: it failed, or took too long.
          InputError: it failed, and would again.
        """
        self.show(arguments, repeated)
        if self.dry_run:
            return supposed
        try:
            # A log may hold any bytes.
            ended = subprocess.run(
                arguments, capture_output=True, text=True, errors="replace", timeout=seconds, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise GcloudError(f"{_short(arguments)} said nothing for {seconds:.0f} s: look at the network") from None
        if ended.returncode:
            reason = _reason(ended.stderr) or _reason(ended.stdout) or "it said nothing"
            sentence = f"{_short(arguments)} failed with exit code {ended.returncode}: {reason}"
            if reason.startswith(ERROR) and PERMANENT.search(reason):
                raise InputError(sentence)
            raise GcloudError(sentence, "NOT_FOUND" in ended.stderr or "was not found" in ended.stderr)
        return ended.stdout

    def follow(self, arguments: Sequence[str]) -> int:
        """Let a command have the terminal until it ends or Ctrl-C; its exit code."""
        self.show(arguments)
        if self.dry_run:
            return 0
        try:
            return subprocess.run(arguments).returncode
        except KeyboardInterrupt:
            return 0


def check_installed(run: Runner) -> None:
    """See that there is a gcloud and that it knows the project; a dry run needs neither.

    Raises:
      InputError: there is none, or no project is set.
    """
    if run.dry_run:
        return
    if shutil.which("gcloud") is None:
        raise InputError(
            "there is no gcloud on the PATH: install the Google Cloud CLI (cloud.google.com/sdk/docs/install), or look "
            "at the commands with --dry_run"
        )
    if run(project()).strip() in ("", "(unset)"):
        raise InputError("no project is set: gcloud config set project NAME, or set CLOUDSDK_CORE_PROJECT")


def check_name(name: str, num_slices: int) -> None:
    """See that Google takes the name of a queued resource, and those of its slices.

    Raises:
      InputError: it would not.
    """
    room = 63 - (len(f"-{num_slices - 1}") if num_slices > 1 else 0)
    if not re.fullmatch("[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(name) > room:
        raise InputError(
            f"--name={name} is no name to Google: give up to {room} of a-z, 0-9 and -, a letter first and no - last"
        )


def _on(which: str) -> list[str]:
    return [f"--node={which}", f"--worker={which}"]


def _short(arguments: Sequence[str]) -> str:
    """The command without its flags, which stand above."""
    return " ".join(argument for argument in arguments if not argument.startswith("--"))


def _reason(text: str) -> str:
    """What gcloud or a host says of a failure: from ERROR on, or else its last lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith(ERROR)]
    told = lines[errors[0] :] if errors else lines[-3:]
    return " ".join(told)[:600]
