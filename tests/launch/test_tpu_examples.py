"""The examples for Slurm and Kubernetes, as far as they can be checked without either."""

import pathlib
import re
import shlex
import subprocess

import pytest

from experiments import settings
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
    topology = spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert f"v5litepod-{chips * pods['parallelism']}" == "v5litepod-16"
    assert GENERATIONS["v5litepod"].topologies[16] == topology
    assert container["command"] == ["python", "-m", "experiments.train"]
    check_training(container["args"], chips * pods["parallelism"] * job["replicas"])
    (workdir,) = (each for each in container["args"] if each.startswith("--workdir="))
    assert workdir.startswith("--workdir=gs://")
