"""The runs behind the figures: their commands, the curves read from what they leave, resuming, and who runs where."""

import json
import pathlib

import pytest
from absl import flags

from aevb.errors import InputError
from experiments import build, settings
from experiments.paper import all as everything
from experiments.paper import curves, fig2, fig3, fig4, fig5, full_vb, runs, step_sizes

ALL = [job for figure in (fig2, fig3, fig4, fig5, full_vb) for job in figure.jobs()]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    """Flags as a command line would set them."""

    def give(**values: object) -> pathlib.Path:
        parsed = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", parsed)
        defaults = {"workdir": str(tmp_path), "out": None, "training_points": 1e7, "seed": 0, "only": "", "jobs": None}
        for name, value in (defaults | values).items():
            flags.DEFINE_string(name, None, name, flag_values=parsed)
            parsed[name].value = value
        parsed.mark_as_parsed()
        return tmp_path

    return give


def test_every_curve_of_the_paper_has_a_run():
    drawn = {(job.figure, job.dataset, job.panel, job.algorithm) for job in fig2.jobs() + fig3.jobs()}
    assert drawn == {curve.name[:4] for curve in curves.published()}
    names = [job.name(0) for job in fig2.jobs() + fig3.jobs()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("job", ALL, ids=lambda job: job.name(0))
def test_a_run_is_the_papers_protocol(job: runs.Job):
    config, *overrides = job.arguments(1e7, seed=3)
    config = settings.load(config.removeprefix("--config="), overrides)
    build.check(config)
    assert config.seed == 3
    assert config.model.latent_dim == job.latent_dim
    assert config.model.hidden == {"3": (100,), "F": (100,)}.get(job.figure, (500,)) or job.dataset == "frey"
    assert (config.train.batch_size, config.bound.num_samples) == (100, 1)
    assert (config.bound.weight_prior, config.optimizer.name) == (job.algorithm != "full-vb", "adagrad")
    assert config.optimizer.learning_rate in step_sizes.TRIED
    assert config.model.init_scale == 0.01
    examples = job.train_size or {"mnist": 50_000, "frey": 1_572}[job.dataset]
    assert config.train.num_epochs * examples == pytest.approx(1e7)
    measure = {"3": ("marginal", 1000), "F": ("bound", 1000)}.get(job.figure, ("bound", 0))
    assert (config.eval.curve_measure, config.eval.curve_examples) == measure


def write_rows(folder: pathlib.Path, rows: list[dict]) -> None:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_bounds_on_train_are_means_since_the_last_evaluation(given):
    folder, job = given(), fig2.jobs()[0]
    rows = [("train", 100, -9.0), ("train", 200, -7.0), ("test", 200, -8.5), ("train", 300, -5.0), ("test", 300, -6.0)]
    rows = [{"split": split, "examples_seen": seen, "elbo": elbo} for split, seen, elbo in rows]
    write_rows(folder / job.name(0), [*rows, {"split": "train", "examples_seen": 400, "elbo": 1.0}])
    train, test = runs.curves(job)
    assert (train.split, train.samples.tolist(), train.nats.tolist()) == ("train", [200, 300], [-8.0, -5.0])
    assert (test.split, test.samples.tolist(), test.nats.tolist()) == ("test", [200, 300], [-8.5, -6.0])
    assert test.name[:4] == ("2", "mnist", "Nz=3", "aevb")
    given(training_points=200.0 - 100)
    assert runs.curves(job)[0].samples.tolist() == [200]


def test_marginal_likelihoods_are_those_measured(given):
    folder, job = given(), fig3.jobs()[2]
    rows = [
        {"split": "train", "examples_seen": 100, "log_joint": -300.0},
        {"split": "train", "examples_seen": 100, "log_marginal": -150.0},
        {"split": "test", "examples_seen": 100, "log_marginal": -160.0},
    ]
    write_rows(folder / job.name(0), rows)
    train, test = runs.curves(job)
    assert (train.split, train.nats.tolist(), test.split, test.nats.tolist()) == ("train", [-150.0], "test", [-160.0])


def test_every_run_has_three_trials_of_its_own():
    trials = step_sizes.jobs()
    assert {job.kind for job in trials} == {job.kind for job in ALL}
    assert len({job.name(0) for job in trials} - {job.name(0) for job in ALL}) == 3 * len({job.kind for job in ALL})
    config, *overrides = trials[1].arguments(1e5, seed=0)
    assert settings.load(config.removeprefix("--config="), overrides).optimizer.learning_rate == 0.02


def test_the_best_step_size_is_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    path = tmp_path / "step_sizes.csv"
    rows = "a,0.01,-90.5 a,0.02,-100.5 a,0.1, b,0.01, b,0.02,3 b,0.1,20 c,0.1,"
    path.write_text("\n".join(["run,step_size,train_nats", *rows.split()]))
    monkeypatch.setattr(runs, "STEP_SIZES", path)
    assert [runs.chosen_step_size(kind) for kind in "ab"] == [0.01, 0.1]
    with pytest.raises(InputError, match="has no step size for c: run"):
        runs.chosen_step_size("c")


def test_what_a_trial_reached():
    rows = [{"split": "train", "examples_seen": seen, "elbo": -float(seen)} for seen in range(100, 1001, 100)]
    rows += [{"split": "test", "examples_seen": 1000, "elbo": 5.0}]
    assert step_sizes.train_nats(rows, 1000) == -1000
    assert step_sizes.train_nats(rows, 1001) is None
    assert step_sizes.train_nats([], 1000) is None
    rows += [
        {"split": split, "examples_seen": 1000, "log_marginal": nats} for split, nats in (("train", -7), ("test", 1))
    ]
    assert step_sizes.train_nats(rows, 1000) == -7


def test_a_run_that_was_never_started_has_no_curves(given):
    given()
    assert runs.curves(fig2.jobs()[0]) == []


def test_only_names_runs(given):
    given(only="frey_nz2_,mnist_nz3_wake")
    assert [job.name(0) for job in runs.chosen(fig2.jobs())] == [
        "mnist_nz3_wake_sleep_seed0",
        "frey_nz2_aevb_seed0",
        "frey_nz2_wake_sleep_seed0",
    ]
    given(only="omniglot")
    with pytest.raises(InputError, match="--only=omniglot names no run: the runs are mnist_nz3_aevb_seed0"):
        runs.chosen(fig2.jobs())


def test_costs_count_a_shared_run_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(everything, "speeds", lambda job: (1e4, 60.0 if job.figure == "3" else 0.0))
    monkeypatch.setattr(everything, "OVERHEAD", 0.0)
    lines = [*everything.costs({"fig2": 1e7, "fig3": 2e6, "fig4": 1e7, "fig5": 1e7, "full_vb": 1e6})]
    # 18 runs of 1e7 at 1e4 a second are 5 hours, figure 3's 6 of 2e6 are 20 minutes and 6 evaluations of a
    # minute; one manifold is figure 2's, and of the samples three are figure 2's and one is a manifold's.
    # Six runs of the study are ten minutes, and their predictions take as long as 4e6 points each.
    hours = [(line.split(":")[0], line.split()[1], line.split()[-2]) for line in lines[:5]]
    expected = [("fig2", "18", "5.0"), ("fig3", "6", "0.4"), ("fig4", "1", "0.3"), ("fig5", "0", "0.0")]
    assert hours == [*expected, ("full_vb", "6", f"{6 * (1e6 + full_vb.PREDICTION_POINTS) / 1e4 / 3600:.1f}")]


def test_a_figure_from_its_command(command, data_dir: str, tmp_path: pathlib.Path):
    """One algorithm, both, of which the first is not made again, and more points, where the first goes on."""
    args = [f"--workdir={tmp_path}/runs", f"--out={tmp_path}/out", "--only=frey_nz2_"]
    one = [*args[:2], "--only=frey_nz2_aevb"]
    command.ok("paper.fig2", *one, "--training_points=20000", AEVB_DATA_DIR=data_dir)
    kept = (tmp_path / "runs/frey_nz2_aevb_seed0/metrics.jsonl").read_text()
    again = command.ok("paper.fig2", *args, "--training_points=20000", AEVB_DATA_DIR=data_dir)
    assert again.out.count("exit code 0") == 1  # of the other
    assert (tmp_path / "runs/frey_nz2_aevb_seed0/metrics.jsonl").read_text() == kept
    first = curves.read(tmp_path / "out/fig2.csv")
    assert {curve.name[3:] for curve in first} == {(a, s) for a in ("aevb", "wake-sleep") for s in ("train", "test")}
    one.append("--training_points=30000")
    assert command.ok("paper.fig2", *one, AEVB_DATA_DIR=data_dir).out.count("exit code 0") == 1
    longer = (tmp_path / "runs/frey_nz2_aevb_seed0/metrics.jsonl").read_text()
    assert longer.startswith(kept)
    ends = {(curve.name[3], curve.samples[-1]) for curve in curves.read(tmp_path / "out/fig2.csv")}
    assert ends == {("aevb", 30_000), ("wake-sleep", 20_000)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "fig2.csv", "fig2_mnist.png", "fig2_frey.png", "fig2_differences.csv", "fig2_differences.md",
    }  # fmt: skip
