"""What is known of TPUs, and the commands for gcloud: as recorded, and as a real gcloud understands them."""

import json
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import time

import pytest

from aevb.errors import InputError
from launch import gcloud, hosts
from launch.accelerators import GENERATIONS, accelerator
from launch.gcloud import GcloudError, Target

ZONE = "us-west4-a"
ONE = Target("vae", ZONE, accelerator("v5litepod-16", ZONE), spot=True)
TWO = Target("vae", "us-central2-b", accelerator("v4-32", "us-central2-b"), num_slices=2)
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]
COMMANDS = {
    "project": (gcloud.project(), "gcloud config get-value project"),
    "create": (
        gcloud.create(ONE),
        "gcloud compute tpus queued-resources create vae --zone=us-west4-a --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --node-id=vae --spot --quiet",
    ),
    "create slices": (
        gcloud.create(TWO),
        "gcloud compute tpus queued-resources create vae --zone=us-central2-b --accelerator-type=v4-32 "
        "--runtime-version=tpu-ubuntu2204-base --node-count=2 --node-prefix=vae --quiet",
    ),
    "delete": (
        gcloud.delete("vae", ZONE),
        "gcloud compute tpus queued-resources delete vae --zone=us-west4-a --force --quiet",
    ),
    "state": (
        gcloud.state("vae", ZONE),
        "gcloud compute tpus queued-resources describe vae --zone=us-west4-a '--format=value(state.state)' --quiet",
    ),
    "node": (
        gcloud.node_state("vae-1", ZONE),
        "gcloud compute tpus tpu-vm describe vae-1 --zone=us-west4-a '--format=value(state)'",
    ),
    "ssh": (
        gcloud.ssh("vae", ZONE, "echo 'a b' > c", everywhere=True),
        "gcloud compute tpus queued-resources ssh vae --zone=us-west4-a --node=all --worker=all "
        "'--command=echo '\"'\"'a b'\"'\"' > c' --quiet",
    ),
    "ssh to one": (
        gcloud.ssh("vae", ZONE, "ls", everywhere=False),
        "gcloud compute tpus queued-resources ssh vae --zone=us-west4-a --node=0 --worker=0 --command=ls --quiet",
    ),
    "send": (
        gcloud.send(ONE, "/tmp/x.tar.gz", "aevb.tar.gz"),
        "gcloud compute tpus queued-resources scp /tmp/x.tar.gz vae:aevb.tar.gz --zone=us-west4-a --node=all "
        "--worker=all --quiet",
    ),
    "bring": (
        gcloud.bring("vae", ZONE, "aevb/runs/x/*", "runs/x"),
        "gcloud compute tpus queued-resources scp 'vae:aevb/runs/x/*' runs/x --zone=us-west4-a --recurse --quiet",
    ),
    "bring from a store": (
        gcloud.bring_from_store("gs://b/x", "runs/x"),
        "gcloud storage rsync gs://b/x runs/x --recursive",
    ),
}
# The numbers of Google's tables: chips, hosts, devices of JAX, topology.
SLICES = {
    "v2-8": (4, 1, 8, "2x2"),
    "v3-32": (16, 4, 32, "4x4"),
    "v4-8": (4, 1, 4, "2x2x1"),
    "v4-32": (16, 4, 16, "2x2x4"),
    "v5litepod-1": (1, 1, 1, "1x1"),
    "v5litepod-8": (8, 1, 8, "2x4"),
    "v5litepod-16": (16, 4, 16, "4x4"),
    "v5litepod-256": (256, 64, 256, "16x16"),
    "v5p-128": (64, 16, 64, "4x4x4"),
    "v6e-4": (4, 1, 4, "2x2"),
    "v6e-64": (64, 16, 64, "8x8"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_commands_are_those_recorded(case: str):
    arguments, recorded = COMMANDS[case]
    assert shlex.join(arguments) == recorded


SCRIPTS = {
    "install": hosts.INSTALL,
    "start": hosts.START.replace("COMMAND", shlex.quote(hosts.command("experiments.train", ["--config=a b", "--x='"]))),
    "state": hosts.STATE,
    "stop": hosts.STOP,
    "log": hosts.LOG.format(lines=5, follow="-F"),
    "head": hosts.RAY_HEAD.format(port=1, resources='{"TPU": 4}', environment="A=1"),
    "worker": hosts.RAY_WORKER.format(port=1, resources='{"TPU": 4}', environment="", head="10.0.0.1"),
}


def test_a_real_gcloud_accepts_them(tmp_path: pathlib.Path):
    """`gcloud meta lint-gcloud-commands` parses command lines by the real tree of commands, and asks no network."""
    if shutil.which("gcloud") is None:
        pytest.skip("there is no gcloud on the PATH")
    lines = [recorded for _, recorded in COMMANDS.values()]
    lines += [shlex.join(gcloud.ssh("vae", ZONE, script, everywhere=True)) for script in SCRIPTS.values()]
    wrong = [f"{COMMANDS['create'][1]} --spott=1", COMMANDS["ssh"][1].replace("--worker=all", "--workers=all")]
    file = tmp_path / "commands.json"
    file.write_text(json.dumps([{"command_string": line} for line in lines + wrong]))
    ended = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={file}"], capture_output=True, text=True
    )
    if not ended.stdout and "Invalid choice" in ended.stderr:
        pytest.skip("this gcloud cannot check commands")
    told = json.loads(ended.stdout)
    assert len(told) == len(lines + wrong)
    assert [each["error_message"] for each in told[: len(lines)]] == [None] * len(lines)
    assert all(each["success"] for each in told[: len(lines)])
    assert [each["success"] for each in told[len(lines) :]] == [False, False]  # so it does look


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_for_any_shell(name: str):
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", "-c", SCRIPTS[name]], check=True)
    assert name == "log" or SCRIPTS[name].splitlines()[-1].startswith('echo "aevb-host $(hostname) ')  # what counts


# What gcloud has been seen to say, and whether it would say it again.
SAID = {
    "PERMISSION_DENIED: Permission denied on 'locations/moon-1' (or it may not exist).": True,
    "INVALID_ARGUMENT: CloudTpu received an invalid AcceleratorType": True,
    "UNAUTHENTICATED: Request had invalid authentication credentials.": True,
    "You do not currently have an active account selected.": True,
    "Cloud TPU API has not been used in project 1 before or it is disabled.": True,
    "FAILED_PRECONDITION: The billing account of project 1 is closed": True,
    "Quota limit 'TPUV5sLitepodServingPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 4 in us-east5-a.": True,
    '{ "code": 8, "message": "There is no more capacity in the zone us-east5-a" }': False,
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Reads' and limit 'Reads per minute'": False,
    "UNAVAILABLE: The service is currently unavailable.": False,
    "INTERNAL: an internal error has occurred": False,
    "[/usr/bin/ssh] exited with return code [255].": False,
}


@pytest.mark.parametrize("said", SAID)
def test_what_is_worth_repeating(said: str):
    for who, again in (("ERROR: (gcloud.compute.tpus.queued-resources.create)", not SAID[said]), ("pip:", True)):
        script = f"echo {shlex.quote(f'{who} {said}')} >&2; exit 1"
        with pytest.raises(InputError, match=re.escape(f"{who} {said}")) as failed:
            gcloud.Runner()(["sh", "-c", script])
        assert isinstance(failed.value, GcloudError) is again


def test_bytes_that_are_no_text_are_no_error():
    assert gcloud.Runner()(["sh", "-c", r"printf 'a\377b'"]) == "a\ufffdb"


def test_a_gcloud_that_hangs_is_left():
    begun = time.monotonic()
    with pytest.raises(GcloudError, match="said nothing for 0 s: look at the network"):
        gcloud.Runner()(["sh", "-c", "sleep 30 & wait"], seconds=0.2)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", SLICES)
def test_slices(name: str):
    found = accelerator(name, GENERATIONS[name.split("-")[0]].zones[0])
    assert (found.chips, found.hosts, found.devices, found.topology) == SLICES[name]


def test_every_slice_adds_up():
    """The number in a name counts cores, two to a chip, up to v4 and in v5p; else chips."""
    for family, generation in GENERATIONS.items():
        cores = 2 if family in ("v2", "v3", "v4", "v5p") else 1
        for size, topology in generation.topologies.items():
            found = accelerator(f"{family}-{size}", generation.zones[-1])
            assert size == cores * found.chips == cores * math.prod(map(int, topology.split("x")))
            assert found.hosts * found.chips_per_host == found.chips
        assert all(re.fullmatch(r"[a-z]+-[a-z]+\d-(ai\d)?[a-z]?", zone) for zone in generation.zones)


@pytest.mark.parametrize(
    ("name", "zone", "words"),
    [
        ("v5e-16", ZONE, "--accelerator_type=v5e-16 is unknown: do you mean v5litepod-16?"),
        ("v5litepod-12", ZONE, "do you mean"),
        ("h100", ZONE, "known are v2, v3, v4, v5litepod, v5p, v6e"),
        ("v4", ZONE, "--accelerator_type=v4 is unknown"),
        ("v4-8", ZONE, "--zone=us-west4-a is not known to have v4: choose one of us-central2-b"),
        ("v5litepod-4", "us-west4-b", "do you mean us-west4-a?"),
    ],
)
def test_unknown_slices(name: str, zone: str, words: str):
    with pytest.raises(InputError, match=re.escape(words)):
        accelerator(name, zone)


@pytest.mark.parametrize("name", ["", "Vae", "1vae", "vae-", "va_e", "v" * 64])
def test_names_that_google_refuses(name: str):
    with pytest.raises(InputError, match="is no name to Google"):
        gcloud.check_name(name, 1)


def test_names_of_slices_have_a_number_more():
    gcloud.check_name("v" * 63, 1)
    gcloud.check_name("v" * 60, 100)
    with pytest.raises(InputError, match="up to 60 of"):
        gcloud.check_name("v" * 61, 100)
