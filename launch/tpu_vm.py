"""Cloud TPU VMs: ask for them, set them up, train or sweep on them, bring the results back, and give them up.

    python -m launch.tpu_vm create --name=vae --zone=us-west4-a --accelerator_type=v5litepod-16 --spot
    python -m launch.tpu_vm setup  --name=vae --zone=us-west4-a --accelerator_type=v5litepod-16
    python -m launch.tpu_vm train  --name=vae --zone=us-west4-a --accelerator_type=v5litepod-16 --spot -- \
        --config=experiments/configs/vae.py --config.train.batch_size=128 --workdir=gs://BUCKET/digits
    python -m launch.tpu_vm sweep  --name=vae --zone=us-west4-a --accelerator_type=v5litepod-16 --tpus_per_trial=1 -- \
        --sweep=launch/sweeps/latent_dim.py --workdir=gs://BUCKET/latent_dim
    python -m launch.tpu_vm status|logs|delete --name=vae --zone=us-west4-a ...
    python -m launch.tpu_vm fetch --name=vae --zone=us-west4-a --workdir=gs://BUCKET/digits --to=runs/digits

train and sweep watch their run until it ends, with its exit code; Ctrl-C leaves it running, and the same command
watches it again. With --spot, machines that are taken away are asked for again, and the run goes on. Every command is
printed before it runs (a question that is repeated, once); --dry_run only prints.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from aevb.errors import InputError
from experiments import cli, settings
from launch import definition, gcloud, hosts, watch
from launch.accelerators import accelerator
from launch.gcloud import Runner, Target

TRIAL_CHIPS = (1, 2, 4, 8)  # what Ray can give a trial of a host's chips


def create(target: Target, run: Runner, rest: list[str]) -> None:
    """Ask Google for machines."""
    _no_more(rest)
    gcloud.check_installed(run)
    spot = "spot " if target.spot else ""
    confirm(f"ask Google for {target.num_slices} x {spot}{target.accelerator} in {target.zone}, which costs money", run)
    run(gcloud.create(target))
    if not run.dry_run:
        print(f"{target.name} is asked for: setup waits until it is there, status tells how far it is", flush=True)


def setup(target: Target, run: Runner, rest: list[str]) -> None:
    """Wait for the machines and put this checkout on them."""
    _no_more(rest)
    gcloud.check_installed(run)
    if (state := watch.wait_for_machines(target, run)) != watch.ACTIVE:
        raise InputError(f"{target.name} is {state}: delete it and create it again")
    hosts.install(target, run)


def train(target: Target, run: Runner, rest: list[str]) -> None:
    """One run over all hosts, to its end."""
    arguments = check_training(target, rest)
    gcloud.check_installed(run)
    _confirm_asking_again(target, run)
    line = hosts.command("experiments.train", arguments)
    _finish(target, run, watch.Job(lambda: hosts.start(target, run, line, everywhere=True)))


def sweep(target: Target, run: Runner, rest: list[str]) -> None:
    """Many runs, each on some chips of a host, to their end."""
    chips = flags.FLAGS.tpus_per_trial
    check_sweep(target, rest, chips)
    gcloud.check_installed(run)
    _confirm_asking_again(target, run)
    line = hosts.command("launch.sweep", [*rest, "--address=auto", f"--tpus_per_trial={chips}"])  # beside Ray's head

    def start() -> None:
        hosts.start(target, run, line, everywhere=False, before=lambda: hosts.start_ray(target, run, chips))

    _finish(target, run, watch.Job(start, everywhere=False))


def status(target: Target, run: Runner, rest: list[str]) -> None:
    """How far the machines and the run on them are."""
    _no_more(rest)
    gcloud.check_installed(run)
    state = watch.queue_state(target, run)
    said = hosts.states(target, run) if state == watch.ACTIVE else {}
    if not run.dry_run:
        print(f"{target.name}: {'not there: create asks for it' if state == watch.ABSENT else state}")
        print(*[f"{host}: {words}" for host, words in sorted(said.items())], sep="\n", flush=True)


def logs(name: str, zone: str, run: Runner, rest: list[str]) -> None:
    """What the first host says, from now on.

    Raises:
      InputError: it cannot be read.
    """
    _no_more(rest)
    gcloud.check_installed(run)
    script = hosts.LOG.format(lines=100, follow="-F")
    if run.follow(gcloud.ssh(name, zone, script, everywhere=False)):
        raise InputError(f"the log of {name} cannot be read: see with status whether it is up and what runs there")


def fetch(name: str, zone: str, run: Runner, rest: list[str]) -> None:
    """Copy the folder of a run here."""
    _no_more(rest)
    path, to = cli.required("workdir", "gs://BUCKET/digits"), Path(cli.required("to", "runs/digits"))
    gcloud.check_installed(run)
    if not run.dry_run:
        to.mkdir(parents=True, exist_ok=True)
    if path.startswith("gs://"):
        run(gcloud.bring_from_store(path, str(to)), seconds=hosts.INSTALL_SECONDS)
    else:
        there = path.rstrip("/") if path.startswith("/") else f"aevb/{path.rstrip('/')}"
        run(gcloud.bring(name, zone, f"{there}/*", str(to)), seconds=hosts.INSTALL_SECONDS)
    if not run.dry_run:
        print(f"the run is in {to}", flush=True)


def delete(name: str, zone: str, run: Runner, rest: list[str]) -> None:
    """Give the machines up."""
    _no_more(rest)
    gcloud.check_installed(run)
    confirm(f"delete {name} in {zone}, with its machines and their disks", run)
    try:
        run(gcloud.delete(name, zone))
    except gcloud.GcloudError as error:
        if not error.absent:
            raise
        print(f"{name} is not in {zone}: nothing is left to delete", flush=True)


# By whether the slices must be known.
OF_SLICES: dict[str, Callable[[Target, Runner, list[str]], None]] = {
    "create": create,
    "setup": setup,
    "train": train,
    "sweep": sweep,
    "status": status,
}
OF_NAMES: dict[str, Callable[[str, str, Runner, list[str]], None]] = {"logs": logs, "fetch": fetch, "delete": delete}


def check_training(target: Target, rest: list[str]) -> list[str]:
    """The arguments of experiments.train on the hosts, once it is seen that they can be.

    Raises:
      InputError: the config cannot be, its batch does not divide over the chips, or the results would be lost.
    """
    overrides = [argument for argument in rest if argument.startswith("--config.")]
    given = _named(rest, "config", "experiments/configs/vae.py")
    _in_checkout("--config", given.partition(":")[0])
    batch, devices = settings.load(given, overrides).train.batch_size, target.accelerator.devices * target.num_slices
    _check_batch(batch, devices, f"{target.num_slices} x {target.accelerator.name}")
    _check_store(target, rest)
    return [*rest, *([] if "--distributed" in rest else ["--distributed"])]


def check_sweep(target: Target, rest: list[str], chips: int) -> None:
    """See that a sweep can be made on the hosts.

    Raises:
      InputError: a trial would have more chips than a host has, the sweep cannot be, the batch of a trial does not
        divide over its chips, or results would be lost.
    """
    has = target.accelerator.chips_per_host
    if chips not in TRIAL_CHIPS or chips > has:
        fit = ", ".join(str(number) for number in TRIAL_CHIPS if number <= has)
        raise InputError(
            f"--tpus_per_trial={chips} cannot be had of the {has} chips on a host of {target.accelerator.name}: choose "
            f"from {fit}"
        )
    path = _named(rest, "sweep", "launch/sweeps/latent_dim.py")
    _in_checkout("--sweep", path)
    made = definition.read(path)
    _in_checkout(f"--sweep={path}: config", made.config.partition(":")[0])
    devices = chips * target.accelerator.devices // target.accelerator.chips
    packed = any(argument.partition("=")[0] == "--packed" for argument in rest)
    for values in _alone(made) if packed else definition.expand(made):
        _check_batch(made.load(values).train.batch_size, devices, f"a trial with --tpus_per_trial={chips}")
    _check_store(target, rest)


def _alone(made: definition.Sweep) -> list[dict[str, Any]]:
    """The values of trials that no other can be packed with: the others are each on one device.

    Raises:
      InputError: the sweep cannot be packed.
    """
    from experiments import build
    from launch import packs, trials

    packs.check(made)
    groups = packs.group(trials.known(made), build.NUMBERS)
    return [members[0].given for members in groups if len(members) == 1]


def confirm(what: str, run: Runner) -> None:
    """Ask before something that costs or destroys; --yes is the answer, a dry run needs none.

    Raises:
      InputError: no, or nobody is there to answer.
    """
    if run.dry_run or flags.FLAGS.yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"to {what} needs a yes, and there is no terminal to ask at: add --yes")
    if input(f"{what[0].upper()}{what[1:]}? [y/N] ").strip().lower() not in ("y", "yes"):
        raise InputError("nothing was done")


def _confirm_asking_again(target: Target, run: Runner) -> None:
    if target.spot:
        confirm(f"ask for {target.name} again, which costs money, whenever its spot machines are taken", run)


def _check_store(target: Target, rest: list[str]) -> None:
    """Refuse a workdir that would be lost with its host, or that several hosts would not share."""
    path = _named(rest, "workdir", "gs://BUCKET/digits")
    if path.startswith("gs://"):
        return
    if target.hosts > 1:
        raise InputError(
            f"--workdir={path} is on one host, and {target.name} has {target.hosts}: use gs://BUCKET/FOLDER"
        )
    if target.spot:
        raise InputError(f"--workdir={path} goes with a spot machine that is taken away: use gs://BUCKET/FOLDER")


def _check_batch(batch: int, devices: int, whose: str) -> None:
    """Refuse a batch that does not divide over the devices."""
    if batch % devices:
        raise InputError(
            f"config.train.batch_size is {batch}, which does not divide over the {devices} devices of {whose}: set it "
            f"to a multiple of {devices}"
        )


def _in_checkout(what: str, file: str) -> None:
    """Refuse a file that is not in what setup puts on the hosts."""
    if Path(file).is_absolute() or not (hosts.ROOT / file).is_file() or file.split("/")[0] not in hosts.CHECKOUT:
        raise InputError(f"{what}={file} is no file of this checkout, which is what the hosts have: put it in there")


def _named(rest: list[str], flag: str, example: str) -> str:
    """The value of --FLAG=VALUE among the arguments after `--`."""
    values = [argument.partition("=")[2] for argument in rest if argument.startswith(f"--{flag}=")]
    if not values or not values[-1]:
        raise InputError(f"--{flag} is missing after --: give for example -- --{flag}={example}")
    return values[-1]


def _no_more(rest: list[str]) -> None:
    if rest:
        raise InputError(f"{rest[0]!r} after -- is for train and sweep: leave it out")


def _finish(target: Target, run: Runner, job: watch.Job) -> None:
    """Follow a job to its end, and leave with its exit code and, of a bad one, what the hosts said last."""
    code = watch.follow(target, job, run)
    if code:
        try:
            log = hosts.LOG.format(lines=20, follow="")
            print(run(gcloud.ssh(target.name, target.zone, log, job.everywhere)), flush=True)
        except InputError as error:
            print(error, flush=True)
        cli.fail(f"the run on {target.name} ended with exit code {code}: see what is above; {watch.COST}", code)
    if not run.dry_run:
        print(f"the run on {target.name} is done; {watch.COST}", flush=True)


def main(argv: list[str]) -> None:
    """The command of the first argument; what stands after -- is for what runs on the hosts."""
    own, rest = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    known = [*OF_SLICES, *OF_NAMES]
    if not own or own[0] not in known:
        what = repr(own[0]) if own else "nothing"
        raise InputError(f"{what} is no command of launch.tpu_vm: choose one of {', '.join(known)}")
    cli.refuse(own[1:])
    given = flags.FLAGS
    name, zone = cli.required("name", "vae"), cli.required("zone", "us-west4-a")
    if given.num_slices < 1:
        raise InputError(f"--num_slices={given.num_slices} gives no machine: use 1 or more")
    gcloud.check_name(name, given.num_slices)
    run = Runner(given.dry_run)
    try:
        if own[0] in OF_NAMES:
            OF_NAMES[own[0]](name, zone, run, rest)
        else:
            kind = accelerator(cli.required("accelerator_type", "v5litepod-16"), zone)
            OF_SLICES[own[0]](Target(name, zone, kind, given.spot, given.num_slices), run, rest)
    except gcloud.GcloudError as error:
        cli.fail(str(error), cli.WRONG_CALL if gcloud.STANDING.search(str(error)) else cli.PREEMPTED)
    except KeyboardInterrupt:
        cli.fail(
            f"what {name} was asked goes on there: the same command watches it again, delete ends it", cli.PREEMPTED
        )


if __name__ == "__main__":
    flags.DEFINE_string("name", None, "Of the queued resource, and of its slices.")
    flags.DEFINE_string("zone", None, "Of Google Cloud, such as us-west4-a.")
    flags.DEFINE_string("accelerator_type", None, "Of each slice, such as v5litepod-16.")
    flags.DEFINE_bool("spot", False, "Machines that cost less and may be taken away; train and sweep then ask again.")
    flags.DEFINE_integer("num_slices", 1, "Slices of that type.")
    flags.DEFINE_integer("tpus_per_trial", 1, "Of sweep: chips for each trial.")
    flags.DEFINE_string("workdir", None, "Of fetch: the run's folder, at gs:// or on the first host.")
    flags.DEFINE_string("to", None, "Of fetch: the folder here.")
    flags.DEFINE_bool("dry_run", False, "Print the commands, run none.")
    flags.DEFINE_bool("yes", False, "The answer to questions about money and deleting.")
    cli.run(main)
