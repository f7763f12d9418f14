import dataclasses

import matplotlib.colors
import numpy as np
import pytest

from aevb.errors import InputError
from aevb.figures import BLUE, ORANGE
from experiments.paper import curves, draw
from experiments.paper.curves import Curve

HEADER = "figure,dataset,panel,algorithm,split,samples,nats,seed"


def curve(samples=(1e6, 1e8), nats=(-120.0, -100.0), **fields):
    defaults = {"figure": "2", "dataset": "mnist", "panel": "Nz=3", "algorithm": "aevb", "split": "test", "seed": 0}
    return Curve(**defaults | fields, samples=np.array(samples), nats=np.array(nats))


@pytest.fixture(scope="module")
def published():
    return curves.published()


# --- Interpolation --------------------------------------------------------------------------------------------


def test_interpolation_is_exact_at_the_points_and_linear_in_log_samples_between():
    line = curve((1e6, 1e8, 1e9), (-120.0, -100.0, -97.0))
    assert [curves.at(line, samples) for samples in line.samples] == [-120, -100, -97]
    assert curves.at(line, 1e7) == pytest.approx(-110)  # half of the two decades
    assert curves.at(line, 10**6.5) == pytest.approx(-115)
    assert curves.at(line, 10**8.2) == pytest.approx(-99.4)


def test_there_is_no_value_outside_but_just_past_an_end_it_is_the_ends():
    line = curve()
    assert curves.at(line, 0.9e6) is None
    assert curves.at(line, 1.1e8) is None
    assert curves.at(line, 0.98e6) == -120
    assert curves.at(line, 1.02e8) == -100


# --- The paper's curves ---------------------------------------------------------------------------------------


def test_the_papers_curves_are_those_of_figures_2_and_3(published):
    assert len(published) == 4 * 5 + 4 * 4 + 6 * 2
    assert len({line.name for line in published}) == len(published)
    assert sum(len(line.samples) for line in published) == 2146
    assert {line.seed for line in published} == {None}
    found = {line.name: line for line in published}
    # AEVB's test curve at 1e7 training points, then fig. 2 at the end of the axis and fig. 3, train and test.
    at_1e7 = {"Nz=3": -138.0, "Nz=5": -124.1, "Nz=10": -108.5, "Nz=20": -104.8, "Nz=200": -103.9}
    for panel, nats in at_1e7.items():
        assert curves.at(found["2", "mnist", panel, "aevb", "test"], 1e7) == pytest.approx(nats, abs=0.06)
    assert curves.at(found["2", "frey", "Nz=5", "aevb", "test"], 1e8) == pytest.approx(1115, abs=10)
    for algorithm, train, test in (("aevb", -109.1, -143.2), ("wake-sleep", -125.5, -144.8), ("mcem", -109.2, -141.6)):
        ends = [curves.at(found["3", "mnist", "Ntrain=1000", algorithm, split], 6e7) for split in ("train", "test")]
        assert ends == pytest.approx([train, test], abs=0.06)


def test_the_papers_curves_travel_with_the_package():
    assert curves.PUBLISHED.read_text().startswith("# ")
    assert "1312.6114" in curves.PUBLISHED.read_text().splitlines()[0]


# --- Files ----------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "fig2.csv"
    lines = [
        curve((100, 23456789, 1e8), (-543.21049, -110.0, -97.12345), seed=3),
        curve(panel="Nz=20", algorithm="wake-sleep", split="train"),
        curve(figure="3", panel="Ntrain=50000", algorithm="mcem"),
    ]
    curves.write(path, lines[::-1])
    assert path.read_text().splitlines()[:2] == [HEADER, "2,mnist,Nz=3,aevb,test,100,-543.2105,3"]
    again = curves.read(path)
    for before, after in zip(lines, again, strict=True):  # the paper's order
        assert (*before.name, before.seed) == (*after.name, after.seed)
        np.testing.assert_array_equal(before.samples, after.samples)
        np.testing.assert_allclose(before.nats, after.nats, rtol=0, atol=5.01e-5)
    text = path.read_bytes()
    curves.write(path, again)
    assert path.read_bytes() == text
    assert list(tmp_path.iterdir()) == [path]


def test_merging_replaces_a_curve_of_the_same_name_and_seed_and_keeps_the_rest():
    kept = [curve(seed=1), curve(split="train"), curve(panel="Nz=5")]
    stale, fresh = curve((1.0, 2.0, 3.0), (-3.0, -2.0, -1.0)), curve((5e5, 1e6), (-9.0, -8.0))
    added = curve(dataset="frey", panel="Nz=2")
    merged = curves.merge([stale, *kept], [fresh, added])
    assert {id(line) for line in merged} == {id(line) for line in (fresh, added, *kept)}
    assert [line.name[1:] for line in merged] == [
        ("mnist", "Nz=3", "aevb", "train"),
        ("mnist", "Nz=3", "aevb", "test"),
        ("mnist", "Nz=3", "aevb", "test"),
        ("mnist", "Nz=5", "aevb", "test"),
        ("frey", "Nz=2", "aevb", "test"),
    ]
    assert [line.seed for line in merged[1:3]] == [0, 1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("figure,dataset,panel,algorithm,split,samples,seed\n", "has no column 'nats': its columns must be figure,"),
        ("figure,dataset,panel,algorithm,split,samples,nats\n", "has no column 'seed'"),
        ("", "has no column 'figure'"),
        (f"{HEADER}\n2,mnist,Nz=3,aevb,test,1e6,many,0\n", "no number where row 1 needs one"),
        (f"{HEADER}\n2,mnist,Nz=3,aevb,test,1e6,-99,0\n2,mnist,Nz=3,aevb\n", "no number where row 2 needs one"),
        (f"{HEADER}\n2,mnist,Nz=4,aevb,test,1e6,-99,0\n", "Nz=4, aevb, test of seed 0 is not in the paper"),
        (f"{HEADER}\n2,mnist,Nz=3,adam,test,1e6,-99,0\n", "adam, test of seed 0 is not in the paper"),
        (f"{HEADER}\n2,mnist,Nz=3,aevb,test,1e6,nan,0\n", "missing, repeated or not finite"),
        (f"{HEADER}\n2,mnist,Nz=3,aevb,test,0,-99,0\n", "missing, repeated or not finite"),
        (f"{HEADER}\n" + "2,mnist,Nz=3,aevb,test,1e6,-99,0\n" * 2, "missing, repeated or not finite"),
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "fig2.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        curves.read(path)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    path = tmp_path / "fig2.csv"
    with pytest.raises(InputError, match=r"fig2\.csv is not there"):
        curves.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"fig2\.csv is not text"):
        curves.read(path)


@pytest.mark.parametrize(("samples", "nats"), [((), ()), ((2.0, 1.0), (-1.0, -1.0)), ((1.0,), (np.inf,))])
def test_a_curve_without_points_that_rise_is_refused(samples, nats):
    with pytest.raises(InputError, match="missing, repeated or not finite"):
        curve(samples, nats)


# --- Differences ----------------------------------------------------------------------------------------------


@pytest.fixture
def compared():
    """Ours at 1e7: -110 and -112, by halves of two decades, and 700; the paper's -108, -109 and 669."""
    frey = {"dataset": "frey", "panel": "Nz=2", "algorithm": "wake-sleep"}
    ours = [
        curve((1e7, 1e8), (700.0, 600.0), **frey, seed=7),
        curve((1e6, 1e8), (-122.0, -102.0), split="train"),
        curve(),
        curve(algorithm="wake-sleep"),  # of which the paper has nothing here
    ]
    paper = [
        curve((1e7, 1e8), (-108.0, -100.5), seed=None),
        curve((1e6, 1e7), (-120.0, -109.0), seed=None, split="train"),
        curve((1e5, 1e7), (100.0, 669.0), seed=None, **frey),
    ]
    return curves.differences(ours, paper)


def test_differences_at_equal_training_points_by_hand(compared):
    table = [dataclasses.astuple(row)[2:] for row in compared]
    expected = [
        ("Nz=3", "aevb", "train", 0, 1e6, -122.0, -120.0, -2.0, False),  # the limit itself is not beyond it
        ("Nz=3", "aevb", "train", 0, 1e7, -112.0, -109.0, -3.0, True),
        ("Nz=3", "aevb", "test", 0, 1e7, -110.0, -108.0, -2.0, False),
        ("Nz=3", "aevb", "test", 0, 1e8, -100.0, -100.5, 0.5, False),
        ("Nz=2", "wake-sleep", "test", 7, 1e7, 700.0, 669.0, 31.0, True),
    ]
    assert [row[:5] for row in table] == [row[:5] for row in expected]
    np.testing.assert_allclose([row[5:8] for row in table], [row[5:8] for row in expected], atol=1e-9)
    assert [row[8] for row in table] == [row[8] for row in expected]
    assert curves.differences([curve()], []) == []


def test_the_table_has_a_row_for_each_curve_and_marks_what_is_beyond_the_limit(compared, tmp_path):
    curves.write_differences(tmp_path / "differences_fig2", compared)
    lines = (tmp_path / "differences_fig2.md").read_text().splitlines()
    assert lines[3:] == [
        "| data | panel | algorithm | split | seed | 1e6 | 1e7 | 1e8 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| MNIST | Nz = 3 | AEVB | train | 0 | −122.0 / −120.0 (−2.0) | −112.0 / −109.0 (**−3.0**) |  |",
        "| MNIST | Nz = 3 | AEVB | test | 0 |  | −110.0 / −108.0 (−2.0) | −100.0 / −100.5 (+0.5) |",
        "| Frey Face | Nz = 2 | wake-sleep | test | 7 |  | 700 / 669 (**+31**) |  |",
    ]
    rows = (tmp_path / "differences_fig2.csv").read_text().splitlines()
    assert rows[0] == "figure,dataset,panel,algorithm,split,seed,samples,ours,paper,difference,beyond"
    assert rows[2] == "2,mnist,Nz=3,aevb,train,0,10000000,-112.0000,-109.0000,-3.0000,True"
    assert len(rows) == 1 + len(compared)


# --- Drawing --------------------------------------------------------------------------------------------------


def drawn(figure):
    """The panels, laid out, without the legend's place; a warning of the layout is an error here."""
    figure.draw_without_rendering()
    return [axes for axes in figure.axes if axes.axison]


def ours_from(published):
    return [dataclasses.replace(line, seed=0, nats=line.nats + 1) for line in published]


def texts(figure):
    legend = figure.legends or [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    assert len(legend) == 1
    return [text.get_text() for text in legend[0].get_texts() if text.get_text()]


@pytest.mark.parametrize("dataset", ["mnist", "frey"])
def test_figure_2_has_a_panel_for_each_latent_size_with_our_lines_over_the_papers(published, dataset):
    figure = draw.fig2(ours_from(published), published, dataset)
    panels = drawn(figure)
    sizes = [3, 5, 10, 20, 200] if dataset == "mnist" else [2, 5, 10, 20]
    assert [axes.get_title() for axes in panels] == [f"$N_z = {size}$" for size in sizes]
    assert figure.get_supxlabel() == "training points seen"
    assert figure.get_supylabel() == f"lower bound on {'MNIST' if dataset == 'mnist' else 'Frey Face'} (nats)"
    assert texts(figure) == ["AEVB", "wake-sleep", "train", "test", "ours", "the paper’s"]
    for axes, size in zip(panels, sizes, strict=True):
        assert axes.get_xscale() == "log"
        assert len(axes.lines) == 8
        for mine in ours_from(published):
            if mine.name[:3] == ("2", dataset, f"Nz={size}"):
                same = [line for line in axes.lines if np.array_equal(line.get_ydata(), mine.nats)]
                below = [line for line in axes.lines if np.array_equal(line.get_ydata(), mine.nats - 1)]
                assert same[0].get_color() == {"aevb": BLUE, "wake-sleep": ORANGE}[mine.algorithm]
                assert (
                    (same[0].get_linestyle() == "--") == (below[0].get_linestyle() == "--") == (mine.split == "train")
                )
                assert below[0].get_linewidth() > 2 * same[0].get_linewidth()
                assert below[0].get_zorder() < same[0].get_zorder()
                pale = matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(below[0].get_color()))
                full = matplotlib.colors.rgb_to_hsv(matplotlib.colors.to_rgb(same[0].get_color()))
                assert pale[1] < 0.5 * full[1]
                assert pale[0] == pytest.approx(full[0], abs=0.01)


def test_figure_3_has_a_panel_for_each_training_set_and_three_algorithms(published):
    figure = draw.fig3(ours_from(published), published)
    panels = drawn(figure)
    assert [axes.get_title() for axes in panels] == [rf"$N_\mathrm{{train}} = {n}$" for n in ("1{,}000", "50{,}000")]
    assert figure.get_supxlabel() == "training points seen (millions)"
    assert figure.get_supylabel() == "marginal log-likelihood (nats)"
    assert texts(figure) == ["AEVB", "wake-sleep", "MCEM", "train", "test", "ours", "the paper’s"]
    for axes in panels:
        assert [len(axes.lines), axes.get_xscale()] == [12, "linear"]
        assert [tick.get_text() for tick in axes.get_xticklabels()[:3]] == ["0", "20", "40"]


def test_curves_that_are_missing_are_absent_and_the_end_of_a_short_poor_one_shows(published):
    short = curve((1e3, 2e4), (-600.0, -300.0), panel="Nz=20")
    figure = draw.fig2([short], [line for line in published if line.algorithm == "aevb"], "mnist")
    panels = drawn(figure)
    assert [len(axes.lines) for axes in panels] == [2, 2, 2, 3, 2]
    assert texts(figure) == ["AEVB", "train", "test", "ours", "the paper’s"]
    (left, right), (low, high) = panels[3].get_xlim(), panels[3].get_ylim()
    assert left < 2e4 < 2.4e8 < right
    assert low < -300 < -98 < high
    assert [len(axes.lines) for axes in draw.fig3([], published).axes] == [6, 6]
    assert [len(axes.lines) for axes in draw.fig3([], []).axes] == [0, 0]


def test_one_point_is_drawn_as_a_dot():
    figure = draw.fig2([curve((1e6,), (-120.0,))], [], "mnist")
    assert figure.axes[0].lines[0].get_marker() == "o"
