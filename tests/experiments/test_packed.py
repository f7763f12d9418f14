"""Packed trials from the command line: each leaves what experiments.train would have, however the pack was stopped."""

import dataclasses
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest
from conftest import CONFIG, SMALL
from etils import epath
from test_train import after, arrays, unfinished, without_times

from aevb.data import Datapoint
from aevb.errors import InputError
from aevb.learners import Batch
from experiments import choices, packed, settings, train, workdir

OVERRIDES = SMALL[1:]
# Of seed 0, as conftest.finished is; of other numbers; and one that leaves the numbers in its second step.
OTHER = ["--config.seed=7", "--config.optimizer.learning_rate=1e-2", "--config.bound.kl_weight=0.5"]
TRIALS = {"first": ["--config.seed=0"], "other": OTHER, "lost": ["--config.optimizer.learning_rate=1e30"]}


def write(folder: pathlib.Path, trials: dict[str, list[str]], overrides: list[str] = OVERRIDES) -> str:
    """The flag that names a file of these trials."""
    listed = [{"workdir": str(folder / name), "overrides": own} for name, own in trials.items()]
    path = folder / "trials.json"
    path.write_text(json.dumps({"config": CONFIG, "overrides": overrides, "trials": listed}))
    return f"--trials={path}"


@pytest.fixture(scope="module")
def pack(command, tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, list]:
    """Trials that were stopped, put at different steps, killed and gone on with; and how each of the calls ended."""
    folder = tmp_path_factory.mktemp("pack")
    flag = write(folder, TRIALS)
    ended = [command("packed", flag, sigterm_when=after(folder / "first/metrics.jsonl", '"step": 10,'))]
    shutil.rmtree(folder / "other/checkpoints/last")  # starts anew, while the first is further
    ended.append(command("packed", flag, fuse=30, watch=str(folder / "first")))
    ended.append(command("packed", flag))
    return folder, ended


def close(found, expected):
    """Two values of JSON, numbers within float32 rounding of 38 steps."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            close(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            close(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    else:
        assert found == expected


def assert_as_alone(folder: pathlib.Path, reference: pathlib.Path) -> None:
    """Every file of a trial says what that of the run alone says."""
    assert {path.name for path in folder.iterdir()} == {path.name for path in reference.iterdir()}
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(
        path.name for path in (reference / "figures").iterdir()
    )
    assert json.loads((folder / "config.json").read_text()) == json.loads((reference / "config.json").read_text())
    rows = [[without_times(row) for row in workdir.read_metrics(epath.Path(each))] for each in (folder, reference)]
    close(*rows)
    summaries = [without_times(json.loads((each / "summary.json").read_text())) for each in (folder, reference)]
    assert summaries[0].pop("packed_with") == 1  # the third one was lost in an earlier call
    for summary in summaries:
        summary["hardware"].pop("device_count")  # each core is a device of a pack
    close(*summaries)
    found, expected = arrays(folder), arrays(reference)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert unfinished(folder) == []


def test_stopped_and_killed(pack):
    folder, (stopped, killed, ended) = pack
    assert stopped.code == 75
    assert "stopped by SIGTERM at step 1" in stopped.err
    assert "saved: run the same command to go on" in stopped.err
    assert killed.code == -9
    assert ended.code == 3
    assert f"resuming {folder}/first at step " in ended.out


def test_each_is_the_run_alone(command, pack, finished: pathlib.Path, tmp_path: pathlib.Path):
    folder, _ = pack
    assert_as_alone(folder / "first", finished)
    command.ok("train", *SMALL, *OTHER, f"--workdir={tmp_path}")
    assert_as_alone(folder / "other", tmp_path)
    words = json.loads((folder / "other/summary.json").read_text())["command"]
    assert words == f"python -m experiments.train {' '.join([*SMALL, *OTHER])} --workdir={folder}/other"
    assert "shared with other packed trials: 1." in (folder / "other/report.html").read_text()


def test_a_trial_that_left_the_numbers_is_marked(pack):
    folder, (stopped, _, ended) = pack
    reason = json.loads((folder / "lost/failure.json").read_text())["reason"]
    assert reason.startswith("step 2 has loss")
    assert reason in stopped.err
    assert ended.err == f"1 of 3 trials failed: see {folder}/lost/failure.json\n"
    assert not (folder / "lost/summary.json").exists()
    assert "NaN" not in (folder / "lost/metrics.jsonl").read_text()


def test_again_repeats_nothing_and_train_goes_on(command, pack):
    folder, _ = pack
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    ended = command("packed", f"--trials={folder}/trials.json")
    assert ended.code == 3
    assert ended.out.count("is finished") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    workdir.write_json(epath.Path(folder / "other" / workdir.FAILURE), {"reason": "of a pack"})
    longer = [*SMALL, *OTHER, "--config.train.num_epochs=4", f"--workdir={folder}/other"]
    ended = command.ok("train", *longer)
    assert "at step 38 of 51" in ended.out
    assert json.loads((folder / "other/summary.json").read_text())["step"] == 51
    assert not (folder / "other" / workdir.FAILURE).exists()


@pytest.mark.parametrize(
    ("trials", "overrides", "words"),
    [
        (
            {"a": [], "b": ["--config.model.latent_dim=3"]},
            [],
            r"config\.model\.latent_dim is 2 in .*/a and 3 in .*/b, and packed trials differ in seed, .* one by one",
        ),
        ({"a": [], "b": ["--config.data.seed=1"]}, [], r"config\.data\.seed is 0 in .*/a and 1 in .*/b"),
        ({"a": [], "b/../a": []}, [], r"/a is the workdir of several trials"),
        ({}, [], "empty list of trials"),
        ({"a": [7]}, [], "holds no trials: write"),
        ({"a": ["--config.sead=1"]}, [], r"config\.sead is unknown: do you mean seed"),
    ],
)
def test_what_cannot_be_packed_is_refused(tmp_path: pathlib.Path, trials, overrides, words):
    flag = write(tmp_path, trials, overrides)
    with pytest.raises(InputError, match=words):
        packed.read(flag.removeprefix("--trials="))
    assert [path.name for path in tmp_path.iterdir()] == ["trials.json"]


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r'^--trials=missing\.json is not there: correct it, or write \{"config"'):
        packed.read("missing.json")


def test_room_is_asked_for_all_of_a_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    """100 MiB free; each run of a kilobyte asks for 32 MiB of figures and 4 states."""
    run = types.SimpleNamespace(
        config=settings.load(CONFIG, ["--config.train.keep_checkpoints=1"]),
        init_state=lambda: np.zeros(2**8, np.float32),
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=100 * 2**20))
    folders = [epath.Path(tmp_path / name) for name in "abcd"]
    train.check_room(folders[:3], run)
    train.check_room([*folders[:3], epath.Path("gs://runs/d")], run)
    with pytest.raises(InputError, match=f"{tmp_path} has 100 MiB free and 4 runs need 128 MiB"):
        train.check_room(folders, run)


@dataclasses.dataclass(eq=False)
class Standing:
    """As much of a trial as decides who is trained with whom."""

    run: types.SimpleNamespace
    step: int

    @property
    def goes_on(self) -> bool:
        return self.step < self.run.num_steps


def test_no_call_ends_where_those_of_a_trial_alone_would_not(monkeypatch: pytest.MonkeyPatch):
    """Beside one that ended a shorter run at step 38, one that starts tells its steps 30 and 40, and none between."""
    keys = types.SimpleNamespace(train=types.SimpleNamespace(log_every_steps=10))
    run = types.SimpleNamespace(config=keys, num_steps=51)
    trials, calls = [Standing(run, 38), Standing(run, 0), Standing(run, 38)], []

    def train_together(together: list[Standing], until: int, _: object) -> float:
        calls.append(([trials.index(trial) for trial in together], together[0].step, until))
        for trial in together:
            trial.step = until
        return 1.0

    monkeypatch.setattr(packed, "train_together", train_together)
    packed.train_all(trials, types.SimpleNamespace(requested=""))
    assert [call[1:] for call in calls] == [(0, 40), (38, 40), (40, 51)]


def test_streamed_data_are_refused(tmp_path: pathlib.Path):
    np.save(tmp_path / "images.npy", np.zeros((30, 4, 4, 1), np.uint8))
    stream = [f"--config.data.dir={tmp_path}/images.npy", "--config.data.memory_limit_mb=0", "--config.dataset=arrays"]
    asked = packed.read(write(tmp_path, {"a": [], "b": ["--config.seed=1"]}, stream).removeprefix("--trials="))
    with pytest.raises(InputError, match=r"arrays streams from disk with config\.data\.memory_limit_mb=0, and packed"):
        packed.make_runs(asked)


# What makes each key one that is read, and two of its values.
PAIRS = {
    "optimizer.learning_rate": ([], "1e-2", "1e-3"),
    "optimizer.weight_decay": (["--config.optimizer.name=adamw"], "0.1", "0"),
    "bound.kl_weight": ([], "0.5", "1"),
    "bound.log_likelihood_target": (["--config.bound.kl_schedule=adaptive"], "-20", "-10"),
    "learner.l1_weight": (
        ["--config.learner.name=autoencoding", "--config.model.posterior=point_mass"],
        "0.1",
        "0",
    ),
}


def program(overrides: list[str]) -> tuple[str, list[float]]:
    """What a step does, as JAX writes it down, and the numbers that the state carries beside arrays."""
    config = settings.load(CONFIG, ["--config.model.hidden=3", *overrides])
    learner = choices.make_learner(config, choices.make_model(config, (4,), 0), 10)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    x, places = np.zeros((2, 4), np.float32), np.zeros(2, np.int32)
    batch = Batch(*Datapoint(x, None)[:2], places, places)
    written = jax.make_jaxpr(lambda state, key: learner.update(state, batch, key, None))(state, jax.random.key(0))
    leaves = jax.tree.leaves(learner.init(jax.random.key(0)).replace(key=None))
    return str(written), [float(leaf) for leaf in leaves if leaf.ndim == 0]


def test_packable_numbers_are_in_the_state_and_not_in_the_program():
    assert set(packed.PACKABLE) == {"seed", *PAIRS}
    for key, (overrides, *values) in PAIRS.items():
        (one, numbers), (other, others) = (program([*overrides, f"--config.{key}={value}"]) for value in values)
        assert one == other, key
        assert numbers != others, key
    assert program(["--config.bound.free_bits=0.1"])[0] != program(["--config.bound.free_bits=0.2"])[0]
