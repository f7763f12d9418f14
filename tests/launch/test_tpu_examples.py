"""The examples for Slurm and Kubernetes, as far as they can be checked without either."""

import pathlib
import re
import shlex
import subprocess

import pytest

from experiments import cli, settings
from launch.accelerators import GENERATIONS

FOLDER = pathlib.Path(__file__).parents[2] / "launch/examples"


def check_training(arguments: list[str], devices: int) -> None:
    """What experiments.train is given: a config that is one, a batch for all devices, and a place for the results."""
    (config,) = (each.removeprefix("--config=") for each in arguments if each.startswith("--config="))
    made = settings.load(config, [each for each in arguments if each.startswith("--config.")])
    assert made.train.batch_size % devices == 0
    assert any(each.startswith("--workdir=") for each in arguments)
    assert "--distributed" in arguments


def test_slurm():
    text = (FOLDER / "train.slurm").read_text()
    subprocess.run(["bash", "-n", FOLDER / "train.slurm"], check=True)
    keys = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    assert keys["ntasks-per-node"] == keys["gpus-per-node"]  # JAX gives each process of Slurm one device
    (line,) = (line for line in text.replace("\\\n", "").splitlines() if line.startswith("srun "))
    arguments = shlex.split(line)
    assert arguments[arguments.index("-m") + 1] == "experiments.train"
    check_training(arguments, int(keys["nodes"]) * int(keys["gpus-per-node"]))


@pytest.mark.parametrize(
    ("code", "restarts", "again"), [(75, "", True), (75, "19", True), (75, "20", False), (3, "", False), (0, "", False)]
)
def test_slurm_asks_for_another_turn(tmp_path: pathlib.Path, code: int, restarts: str, again: bool):
    for name, script in {"srun": f"exit {code}", "scontrol": f'echo "$*" > {tmp_path}/told'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    env |= {"SLURM_RESTART_COUNT": restarts} if restarts else {}
    assert subprocess.run(["bash", FOLDER / "train.slurm"], env=env).returncode == code
    assert ((tmp_path / "told").read_text() == "requeue 7\n") if again else not (tmp_path / "told").exists()


def test_job_set():
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra launch")
    told = yaml.safe_load((FOLDER / "jobset.yaml").read_text())
    assert (told["apiVersion"], told["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = told["spec"]["replicatedJobs"]
    pods, spec = job["template"]["spec"], job["template"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    assert pods["parallelism"] == pods["completions"]
    (ends,), policy = pods["podFailurePolicy"]["rules"], told["spec"]["failurePolicy"]
    assert (ends["action"], spec["restartPolicy"]) == ("FailJob", "Never")  # which Kubernetes asks for
    assert ends["onExitCodes"] == {"operator": "In", "values": [cli.WRONG_CALL, cli.NON_FINITE]}
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    topology = spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert f"v5litepod-{chips * pods['parallelism']}" == "v5litepod-16"
    assert GENERATIONS["v5litepod"].topologies[16] == topology
    assert container["command"] == ["python", "-m", "experiments.train"]
    check_training(container["args"], chips * pods["parallelism"] * job["replicas"])
    (workdir,) = (each for each in container["args"] if each.startswith("--workdir="))
    assert workdir.startswith("--workdir=gs://")
