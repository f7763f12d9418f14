"""A wrong call: one plain sentence on stderr, a telling exit code, and no folder made or changed."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from conftest import CONFIG, SMALL
from etils import epath
from PIL import Image

from experiments import workdir

ARRAYS = CONFIG + ":arrays"


def snapshot(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    stats = {path.relative_to(folder): path.stat() for path in folder.rglob("*")}
    return {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def refused(command, module: str, *args: str, words: list[str], code: int = 2, **env: str) -> None:
    ended = command(module, *args, **env)
    assert (ended.code, ended.out) == (code, "")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    assert "Traceback" not in ended.err
    assert [word for word in words if word not in ended.err] == []
    assert ended.seconds < 30  # a few, on a machine with nothing else to do


TRAIN = {
    "key": (["--config.model.latent_dimm=3"], ["model.latent_dimm", "model.latent_dim?"]),
    "type": (["--config.model.latent_dim=two"], ["model.latent_dim=two", "whole number"]),
    "value": (["--config.train.num_epochs=-1"], ["train.num_epochs is -1"]),
    "choice": (["--config.optimizer.name=adamm"], ["adamm", "adamw"]),
    "binarization": (["--config.data.binarization=none"], ["grey values", "--config.data.binarization=static"]),
    "another learner's key": (["--config.learner.num_leapfrog=3"], ["num_leapfrog is 3", "aevb does not read it"]),
    "negative beta": (["--config.bound.kl_weight=-1"], ["kl_weight is -1", "must not be negative"]),
    "free bits without a KL": (
        ["--config.bound.name=iwae", "--config.bound.free_bits=0.5"],
        ["free_bits is 0.5", "iwae has no KL", "name=sgvb_b"],
    ),
    "another schedule's key": (["--config.bound.kl_warmup_steps=5"], ["kl_warmup_steps is 5", "schedule constant"]),
    "another network's key": (["--config.model.channels=(8,)"], ["channels is [8]", "network mlp does not read it"]),
    "a prior of what": (
        ["--config.model.prior=conditional_gaussian"],
        ["context is none", "--config.model.context=label"],
    ),
    "few samples": (
        ["--config.eval.estimator=hmc", "--config.eval.num_samples=5", "--config.model.latent_dim=2"],
        ["num_samples is 5", "at least 6", "usual 50"],
    ),
    "many dimensions": (
        ["--config.eval.curve_measure=marginal", "--config.model.latent_dim=20"],
        ["fails above 10", "latent_dim is 20", "estimator=ais or importance", "curve_measure=bound"],
    ),
    "nothing to stop by": (
        ["--config.eval.curve_measure=none", "--config.train.patience=3"],
        ["patience", "curve_measure=bound"],
    ),
    "data folder": (["--config.data.dir=/no/such"], ["/no/such", "does not exist"]),
    "flag": (["--workdirr=x"], ["'--workdirr=x'", "--workdir?"]),
    "argument": (["stray"], ["'stray'"]),
    "data set": ([f"--config={CONFIG}:mnits"], ["'mnits'", "fashion_mnist"]),
    "tfds": ([f"--config={CONFIG}:tfds:nosuch"], ["'nosuch'"]),
    "no config": (["--config="], ["--config is missing", CONFIG]),
    "config file": (["--config=no/such.py"], ["'no/such.py'", CONFIG]),
    "config folder": (["--config=experiments"], ["'experiments'"]),
    "workdir": (["--workdir="], ["--workdir is missing"]),
    "unwritable": (["--workdir=/proc/run"], ["/proc"]),
    "below a file": ([f"--workdir={CONFIG}/run"], [CONFIG]),
    "a file": ([f"--workdir={CONFIG}"], [CONFIG, "is a file"]),
}


@pytest.mark.parametrize("case", TRAIN)
def test_train(command, tmp_path: pathlib.Path, case: str):
    args, words = TRAIN[case]
    refused(command, "train", f"--config={CONFIG}", f"--workdir={tmp_path}/run", *args, words=words)
    assert list(tmp_path.iterdir()) == []


def test_devices(command, tmp_path: pathlib.Path):
    flag = "--xla_force_host_platform_device_count=3"
    args = [f"--config={CONFIG}", f"--workdir={tmp_path}/run"]
    refused(command, "train", *args, words=["batch_size is 100", "3 devices"], XLA_FLAGS=flag)
    assert list(tmp_path.iterdir()) == []


def test_no_network(command, tmp_path: pathlib.Path):
    """Neither files nor a way to fetch them: a proxy that refuses stands for a machine without a network."""
    closed = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    args = [f"--config={CONFIG}:mnist", f"--workdir={tmp_path}/run", f"--config.data.dir={tmp_path}"]
    refused(command, "train", *args, words=["cannot reach", "--config.data.dir"], **closed)
    assert list(tmp_path.iterdir()) == []


def images(folder: pathlib.Path, *sizes: tuple[int, int]) -> None:
    for i, size in enumerate(sizes):
        Image.new("L", size).save(folder / f"{i}.png")


DATA = {
    "missing": (ARRAYS, lambda folder: None, ["holds no arrays"]),
    "truncated": (
        ARRAYS,
        lambda folder: (folder / "a.npz").write_bytes(b"PK\3\4 cut short"),
        ["a.npz", "cannot read"],
    ),
    "mislabelled": (ARRAYS, lambda folder: (folder / "a.npy").write_text("1,2,3"), ["a.npy", "cannot read"]),
    "not a number": (ARRAYS, lambda folder: np.save(folder / "a.npy", np.full((20, 3), np.nan)), ["nan", "[0, 0]"]),
    "one axis": (ARRAYS, lambda folder: np.save(folder / "a.npy", np.zeros(20)), ["[20]"]),
    "out of range": (
        CONFIG + ":arrays",
        lambda folder: np.save(folder / "a.npy", np.full((20, 3), 2.0)),
        ["values from 2 to 2", "rescale"],
    ),
    "integers": (ARRAYS, lambda folder: np.save(folder / "a.npy", np.full((20, 3), 999)), ["999", "0 to 255"]),
    "odd shapes": (CONFIG + ":folder", lambda folder: images(folder, (4, 4), (4, 5)), ["0.png", "1.png"]),
    "no picture": (CONFIG + ":folder", lambda folder: (folder / "a.png").write_text("x"), ["a.png"]),
    "cut idx": (CONFIG + ":mnist", lambda folder: (folder / "t10k-images-idx3-ubyte").write_text("x"), ["lacks"]),
    "no labels": (ARRAYS, lambda folder: np.save(folder / "a.npy", np.ones((20, 3))), ["train split", "no labels"]),
    "no image": (ARRAYS, lambda folder: np.save(folder / "a.npy", np.ones((20, 3))), ["takes images", "mlp"]),
    "negative count": (
        ARRAYS,
        lambda folder: np.save(folder / "a.npy", np.full((20, 3), -1.0)),
        ["holds -1", "counts 0, 1, 2, ... only"],
    ),
    "no level": (
        ARRAYS,
        lambda folder: np.save(folder / "a.npy", np.full((20, 3), 300.0)),
        ["holds 300", "levels k / 255 only"],
    ),
}
# What it takes to see them.
OPTIONS = {
    "out of range": ["model.likelihood=continuous_bernoulli"],
    "no labels": ["model.context=label"],
    "no image": ["model.network=conv"],
    "negative count": ["model.likelihood=poisson"],
    "no level": ["model.likelihood=categorical"],
}


@pytest.mark.parametrize("case", DATA)
def test_data(command, tmp_path: pathlib.Path, case: str):
    config, make, words = DATA[case]
    data = tmp_path / "data"
    data.mkdir()
    make(data)
    args = [f"--config={config}", f"--workdir={tmp_path}/run", f"--config.data.dir={data}"]
    extra = [f"--config.{option}" for option in OPTIONS.get(case, [])]
    refused(command, "train", *args, *extra, words=words)
    assert not (tmp_path / "run").exists()


OTHER = {
    "another config": (
        ["--config.model.latent_dim=3", "--config.seed=1"],
        ["model.latent_dim is 2 there and 3", "seed"],
    ),
    "shorter": (["--config.train.num_epochs=1"], ["train.num_epochs is 3.0 there and 1.0 here"]),
    "longer cosine": (["--config.optimizer.schedule=cosine"], ["optimizer.schedule", "optimizer.decay_steps"]),
}


@pytest.mark.parametrize("case", OTHER)
def test_another_run_in_the_folder(command, finished: pathlib.Path, case: str):
    args, words = OTHER[case]
    before = snapshot(finished)
    refused(command, "train", *SMALL, f"--workdir={finished}", *args, words=words)
    assert snapshot(finished) == before


def test_another_process_in_the_folder(command, tmp_path: pathlib.Path):
    with workdir.claim(epath.Path(tmp_path)):
        refused(command, "train", *SMALL, f"--workdir={tmp_path}", words=[str(tmp_path), "another process"])
    assert [path.name for path in tmp_path.iterdir()] == [workdir.LOCK]
    with workdir.claim(epath.Path(tmp_path)):  # it was given back
        pass


def test_folder_of_something_else(command, tmp_path: pathlib.Path):
    (tmp_path / "thesis.tex").write_text("x")
    refused(command, "train", *SMALL, f"--workdir={tmp_path}", words=[str(tmp_path), "not empty"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_no_room(command, tmp_path: pathlib.Path):
    """Layers of a hundred thousand units: their checkpoints need more than any disk here has."""
    wide = "--config.model.hidden=(1000000,1000000)"
    args = [f"--config={CONFIG}", f"--workdir={tmp_path}/run", wide]
    refused(command, "train", *args, words=[str(tmp_path), "MiB free", "make room"])
    assert list(tmp_path.iterdir()) == []


READING = {
    "split": ("evaluate", ["--split=tset"], ["'tset'", "validation"]),
    "samples": ("evaluate", ["--num_samples=0"], ["num_samples"]),
    "samples type": ("evaluate", ["--num_samples=many"], ["--num_samples=many: not a number: correct"]),
    "share type": ("generate", ["--what=inpaint", "--share=some"], ["--share=some: not a number: correct"]),
    "flag": ("evaluate", ["--max_exampels=3"], ["max_exampels", "--max_examples?"]),
    "no run": ("evaluate", ["--workdir=/no/such"], ["/no/such/config.json", "experiments.train"]),
    "no workdir": ("evaluate", ["--workdir="], ["--workdir is missing"]),
    "what": ("generate", ["--what=pictures"], ["'pictures'", "reconstructions"]),
    "no what": ("generate", [], ["--what is missing"]),
    "out": ("generate", ["--what=samples", "--out=/tmp/x.jpg"], ["/tmp/x.jpg", ".png"]),
    "unwritable out": ("generate", ["--what=samples", "--out=/proc/new/x.png"], ["/proc/new"]),
    "num": ("generate", ["--what=samples", "--num=0"], ["num"]),
    "label of pictures of data": ("generate", ["--what=latents", "--label=3"], ["--label"]),
    "restorations of a VAE": ("generate", ["--what=restorations"], ["masked autoencoder", "--what=reconstructions"]),
    "another picture's flag": ("generate", ["--what=latents", "--share=0.5"], ["--share is for inpaint", "latents"]),
    "noise": ("generate", ["--what=denoise", "--noise=dust"], ["dust", "salt_and_pepper"]),
    "no file": ("generate", ["--what=inpaint", "--files=/no/such.png"], ["/no/such.png", "no such file"]),
    "one side": ("generate", ["--what=arithmetic", "--minus=7"], ["--plus is missing"]),
}


@pytest.mark.parametrize("case", READING)
def test_evaluate_and_generate(command, finished: pathlib.Path, case: str):
    module, args, words = READING[case]
    before = snapshot(finished)
    refused(command, module, f"--workdir={finished}", *args, words=words)
    assert snapshot(finished) == before


CONFIGS = {
    "no JSON": ("{", ["cannot be read as JSON"]),
    "no dictionary": ("[]", ["holds no config"]),
    "empty": ("{}", ["lacks the key"]),
    "another type": (None, ["model.latent_dim=many", "whole number"]),
}


@pytest.mark.parametrize("module", ["train", "evaluate", "generate"])
@pytest.mark.parametrize("case", CONFIGS)
def test_damaged_config(command, finished: pathlib.Path, tmp_path: pathlib.Path, case: str, module: str):
    text, words = CONFIGS[case]
    config = json.loads((finished / "config.json").read_text())
    config["model"]["latent_dim"] = "many"
    (tmp_path / "config.json").write_text(text or json.dumps(config))
    before = snapshot(tmp_path)
    args = {"train": SMALL, "evaluate": [], "generate": ["--what=samples"]}[module]
    refused(command, module, f"--workdir={tmp_path}", *args, words=[str(tmp_path / "config.json"), *words])
    assert snapshot(tmp_path) == before


def test_manifold_needs_two_dimensions(command, finished: pathlib.Path, tmp_path: pathlib.Path):
    config = json.loads((finished / "config.json").read_text())
    config["model"]["latent_dim"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["2 latent dimensions", "has 3", "--what=traversals"]
    refused(command, "generate", f"--workdir={tmp_path}", "--what=manifold", words=words)
    words = [str(tmp_path), "no checkpoint yet", "experiments.train"]
    refused(command, "generate", f"--workdir={tmp_path}", "--what=samples", words=words)
    shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints")
    refused(command, "evaluate", f"--workdir={tmp_path}", words=["do not fit the model of config.json"])
