import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.text import Text
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from aevb import figures


def rendered(figure):
    """The pixels of the saved file, [height, width, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def cell_pixels(figure, cells, cell):
    """[R, C, H, W, 3]: the rendered picture cut into cells, one pixel for each pixel of an event."""
    rows, columns = cells.shape[:2]
    pixels = rendered(figure)
    box = figure.axes[0].get_window_extent()
    left, top = round(box.x0), pixels.shape[0] - round(box.y1)
    height, width = cells.shape[2:4]
    scale = round(figure.dpi * cell - figures.GAP) // width
    down, right = scale * height + figures.GAP, scale * width + figures.GAP
    found = np.empty((rows, columns, height, width, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            y, x = top + row * down, left + column * right
            block = pixels[y : y + scale * height, x : x + scale * width]
            blocks = block.reshape(height, scale, width, scale, 3)
            assert (blocks == blocks[:, :1, :, :1]).all()  # each pixel of the event is a uniform square
            found[row, column] = blocks[:, 0, :, 0]
    return found


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def colours(images):
    """uint8 [..., H, W] or [..., H, W, 1 or 3], to [..., H, W, 3]."""
    return np.broadcast_to(images, (*images.shape[:-1], 3))


def test_compose_places_every_pixel():
    cells = random_images(2, 3, 4, 5, 3)
    picture = figures.compose(cells, scale=2, gap=1)
    assert picture.shape == (2 * 9, 3 * 11, 3)
    for row, column, y, x in np.ndindex(2, 3, 4, 5):
        top, left = row * 9 + 2 * y, column * 11 + 2 * x
        assert (picture[top : top + 2, left : left + 2] == cells[row, column, y, x]).all()
    assert (picture[8::9] == 255).all() and (picture[:, 10::11] == 255).all()


@pytest.mark.parametrize("event", [(8, 8, 1), (28, 28, 1), (28, 20, 1), (105, 105, 3), (32, 32, 3), (5, 9, 3)])
def test_samples_are_drawn_pixel_by_pixel(event):
    images = random_images(6, *event)
    columns = min(6, int(np.ceil(np.sqrt(6 * event[0] / event[1]))))
    cell = min(figures.WIDTH / columns, figures.MAX_CELL)
    figure = figures.samples(images / 255)
    rows = -(-6 // columns)
    blank = np.full((rows * columns - 6, *event), 255, np.uint8)
    expected = colours(np.concatenate([images, blank]).reshape(rows, columns, *event))
    np.testing.assert_array_equal(cell_pixels(figure, expected, cell), expected)


def test_uint8_and_missing_channels_and_clipping_draw_the_same():
    images = load_digits().images[:9] / 16
    reference = rendered(figures.samples(images[..., None]))
    np.testing.assert_array_equal(rendered(figures.samples(images)), reference)
    np.testing.assert_array_equal(rendered(figures.samples(np.round(255 * images).astype(np.uint8))), reference)
    black_and_white = (images > 0.5).astype(float)
    np.testing.assert_array_equal(
        rendered(figures.samples(9 * black_and_white - 4)), rendered(figures.samples(black_and_white))
    )


def test_reconstructions_stand_below_their_originals():
    originals, decoded = random_images(2, 10, 8, 8, 1)
    figure = figures.reconstructions(originals, decoded / 255)
    expected = colours(np.stack([originals, decoded]))
    np.testing.assert_array_equal(cell_pixels(figure, expected, (figures.WIDTH - 0.75) / 10), expected)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["data", "model"]


def test_interpolations_frame_the_first_and_the_last_column():
    axes = figures.interpolations(np.zeros((3, 7, 8, 8))).axes[0]
    frames = [(patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) for patch in axes.patches]
    assert frames == [(0, 0, 1, 3), (6, 0, 1, 3)]


def test_manifold_grows_to_the_right_and_upwards():
    images = random_images(4, 4, 28, 28, 1)
    u = (np.arange(len(images)) + 0.5) / len(images)
    figure = figures.manifold(images, np.stack([norm.ppf(u), 10 * u], axis=1))
    expected = colours(images[::-1])  # the top row is the largest z_2
    np.testing.assert_array_equal(cell_pixels(figure, expected, (figures.WIDTH - 1.9) / 4), expected)
    axes, top, right = [figure.axes[0], *figure.axes[0].child_axes]
    # Phi^-1(1/8) = -1.15 and Phi^-1(3/8) = -0.32, from a table of the Gaussian
    assert [text.get_text() for text in axes.get_xticklabels()] == ["−1.2", "−0.3", "0.3", "1.2"]
    assert axes.get_yticks().tolist() == [3.5, 2.5, 1.5, 0.5]  # the axes count rows from the top
    for part, labels in ((top, top.get_xticklabels()), (right, right.get_yticklabels())):
        assert [text.get_text() for text in labels] == ["0.125", "0.375", "0.625", "0.875"], part


def test_traversals_are_sorted_by_kl_and_name_their_dimensions():
    images = random_images(30, 3, 8, 8, 1)
    kl = np.random.default_rng(1).gamma(2, 1, 30)
    figure = figures.traversals(images, np.array([-2.0, 0.0, 2.0]), kl)
    order = np.argsort(-kl)[:20]
    expected = colours(images[order])
    np.testing.assert_array_equal(cell_pixels(figure, expected, figures.MAX_CELL), expected)
    axes, twin = figure.axes[0], figure.axes[0].child_axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["−2.0", "0.0", "2.0"]
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"$z_{{{i + 1}}}$" for i in order]
    assert [text.get_text() for text in twin.get_yticklabels()] == [f"{kl[i]:.2f}" for i in order]


@pytest.mark.parametrize("event", [(12,), (2, 3, 2, 1), (4, 4, 2), ()])
def test_events_that_are_no_images_are_lines_on_one_scale(event):
    values = np.random.default_rng(0).normal(size=(5, *event))
    figure = figures.samples(values)
    (lines,) = [item for item in figure.axes[0].collections if isinstance(item, LineCollection)]
    heights = np.array([segment[:, 1] % 1 for segment in lines.get_segments() if len(segment)])
    flat = values.reshape(5, -1)
    expected = 0.88 - 0.80 * (flat - flat.min()) / np.ptp(flat)
    np.testing.assert_allclose(heights, expected, atol=1e-12)
    assert f"{flat.max():.3g}" in figure.texts[0].get_text()


def metrics(count, start=-540.0):
    rng = np.random.default_rng(3)
    for step in range(count):
        elbo = start if step == 0 else -100 + rng.normal()
        for split in ("train", "validation"):
            row = {"split": split, "examples_seen": step * 100, "elbo": elbo - (split == "validation")}
            yield row | {"kl": 25.0, "log_likelihood": row["elbo"] + 25}


def test_learning_curves_mark_the_best_validation_bound():
    rows = list(metrics(50))
    rows[51]["elbo"] = float("nan")
    best = max((row for row in rows[1::2] if row["elbo"] == row["elbo"]), key=lambda row: row["elbo"])
    (star,) = [line for line in figures.learning_curves(rows).axes[0].lines if line.get_marker() == "*"]
    assert star.get_xydata().tolist() == [[best["examples_seen"], best["elbo"]]]
    assert star.get_label() == f"best validation, −{-best['elbo']:.2f} nats"


def test_the_best_of_errors_is_the_least():
    errors = [0.09, 0.04, 0.0512]
    rows = [{"split": "validation", "examples_seen": i, "masked_error": error} for i, error in enumerate(errors)]
    (star,) = [line for line in figures.learning_curves(rows).axes[0].lines if line.get_marker() == "*"]
    assert star.get_xydata().tolist() == [[1, 0.04]]
    assert star.get_label() == "best validation, 0.0400"


def test_learning_curves_show_the_bulk_and_say_where_they_start():
    bound, log_likelihood, kl = figures.learning_curves(list(metrics(50))).axes
    low, high = bound.get_ylim()
    assert -110 < low < high < -90
    assert [text.get_text() for text in bound.texts] == ["starts at −541 ↓"]
    assert [text.get_text() for text in log_likelihood.texts] == ["starts at −516 ↓"]
    assert not kl.texts
    gentle = figures.learning_curves(list(metrics(50, start=-102))).axes[0]
    assert gentle.get_ylim()[0] < -103 and not gentle.texts


@pytest.mark.parametrize("rows", [[], list(metrics(1)), list(metrics(2)), list(metrics(40))[::2]])
def test_learning_curves_keep_every_point_of_a_short_or_unvalidated_log(rows):
    figure = figures.learning_curves(rows)
    rendered(figure)
    curves = [line for line in figure.axes[0].lines if line.get_label() in ("train", "validation")]
    assert sum(len(line.get_xdata()) for line in curves) == len(rows)


def test_latents_are_the_principal_components():
    means = load_digits().data[:300]
    axes = figures.latents(means).axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    pca = PCA(2).fit(means)
    expected = pca.transform(means)
    np.testing.assert_allclose(points * np.sign((points * expected).sum(0)), expected, atol=1e-8)
    for label, fraction in zip((axes.get_xlabel(), axes.get_ylabel()), pca.explained_variance_ratio_, strict=True):
        assert f"({100 * fraction:.1f} % of the variance)" in label


def test_two_latents_are_drawn_as_they_are_and_classes_keep_their_colours():
    means, labels = np.random.default_rng(0).normal(size=(60, 2)), np.arange(60) % 12 + 5
    figure = figures.latents(means, labels)
    circles, triangles = figure.axes[0].collections[:2]
    np.testing.assert_array_equal(circles.get_offsets(), means[labels < 15])
    np.testing.assert_array_equal(triangles.get_offsets(), means[labels >= 15])
    looks = {(tuple(colour), "o") for colour in circles.get_facecolor()}
    looks |= {(tuple(colour), "^") for colour in triangles.get_facecolor()}
    assert len(looks) == 12
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [str(i) for i in range(5, 17)]


@pytest.mark.parametrize(("latent_dim", "classes"), [(1, 3), (2, 0), (2, 100), (5, 20)])
def test_latents_render_for_any_number_of_dimensions_and_classes(latent_dim, classes):
    means = np.random.default_rng(0).normal(size=(200, latent_dim))
    labels = np.arange(200) % classes if classes else None
    figure = figures.latents(means, labels)
    rendered(figure)
    drawn = sum(len(item.get_offsets()) for item in figure.axes[0].collections)
    assert drawn == 200
    assert bool(figure.legends) == (0 < classes <= 20)


def test_latents_have_the_names_of_their_classes():
    means, labels = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2 + 1
    figure = figures.latents(means, labels, ("ant", "a very long name of a bee", "wasp"))
    rendered(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a very long name of a bee", "wasp"]


@pytest.mark.parametrize("latent_dim", [1, 2, 20, 200])
def test_kl_bars_are_sorted_and_coloured_by_activity(latent_dim):
    kl = np.random.default_rng(0).gamma(1, 1, latent_dim)
    figure = figures.kl_per_dim(kl, kl > 0.5)
    rendered(figure)
    bars = figure.axes[0].patches
    np.testing.assert_array_equal([bar.get_height() for bar in bars], np.sort(kl)[::-1])
    blue = np.array([bar.get_facecolor()[2] > bar.get_facecolor()[0] + 0.5 for bar in bars])
    assert blue.sum() == (kl > 0.5).sum() and blue[: blue.sum()].all()
    if latent_dim <= 20:
        names = [int(text.get_text()) for text in figure.axes[0].get_xticklabels()]
        np.testing.assert_array_equal(kl[np.array(names) - 1], np.sort(kl)[::-1])
    assert f"their sum is {kl.sum():.2f} nats" in figure.axes[0].get_xlabel()


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("best", [-84.0, -86.2])  # a search that ended below the encoder has a gap below 0
def test_the_gap_is_drawn_at_its_levels_with_its_parts_in_nats(best):
    levels = {"log_marginal": -83.0, "optimal_elbo": best, "elbo": -86.0}
    figure = figures.gap(levels, [0, 500, 1000], [-86.0, -85.7, -85.5])
    rendered(figure)
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    assert [line[0] for line in lines[:2]] == [-83.0, best]
    np.testing.assert_array_equal(lines[2], [-86.0, -85.7, -85.5])
    said = texts(figure)
    assert f"approximation gap\n{-83.0 - best:.2f} nats" in said
    assert f"amortization gap\n{best + 86.0:.2f} nats" in said
    low, high = figure.axes[0].get_ylim()
    assert low < min(best, -86.0) and high > -83.0


def test_estimates_above_log_p_are_drawn_too():
    below = {"from_posterior": [3.0, 0.5, -0.01], "from_prior": [80.0, 40.0, 20.0]}
    errors = {"from_posterior": [0.2, 0.1, 0.02], "from_prior": [1.0, 1.0, 1.0]}
    figure = figures.proposals([1, 10, 100], below, errors)
    rendered(figure)
    axes = figure.axes[0]
    for (line, _, (bars,)), name in zip(axes.containers, ("from_prior", "from_posterior"), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), below[name])
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(np.ptp(ends, axis=1), 4 * np.array(errors[name]))
    assert np.isfinite(axes.transData.transform([(100, -0.01)])).all() and axes.get_ylim()[0] < -0.01
    assert "± 2 standard errors" in texts(figure)


def test_classes_are_rows_with_their_names():
    images = random_images(2, 10, 8, 8, 1)
    figure = figures.classes(images, ["cat", "dog"])
    expected = colours(images)
    np.testing.assert_array_equal(cell_pixels(figure, expected, (figures.WIDTH - 0.75) / 10), expected)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["cat", "dog"]
    assert figure.axes[0].get_ylabel() == "class"


def test_rows_without_a_name_for_them_have_names_of_several_lines():
    images = random_images(2, 10, 8, 8, 1)
    figure = figures.classes(images, ["data", "salt and\npepper"], "")
    expected = colours(images)
    cell = (figures.WIDTH - 0.5 - 5 * 0.6 * figures.FONT / 72) / 10
    np.testing.assert_array_equal(cell_pixels(figure, expected, cell), expected)
    left = min(text.get_window_extent().x0 for text in figure.axes[0].get_yticklabels())
    assert left > 0


@pytest.mark.parametrize("widths", [(1, 3, 3), (1, 1, 1, 1)])
def test_what_stands_beside_an_example_is_named_by_the_block(widths):
    images = random_images(3, sum(widths), 8, 8, 1)
    names = ["data", "near", "far", "farther"][: len(widths)]
    figure = figures.beside(images, names, widths, "what")
    rendered(figure)
    axes = figure.axes[0]
    places = np.cumsum(widths) - np.array(widths) / 2
    np.testing.assert_array_equal(axes.get_xticks(), places)
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert len(axes.lines) == (len(widths) - 2 if max(widths) > 1 else 0)
    boxes = [text.get_window_extent() for text in (*axes.get_xticklabels(), axes.xaxis.label)]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(box.y0 > 0 and box.y1 < figure.bbox.height for box in boxes)
    picture = axes.images[0].get_array()
    scale = (picture.shape[1] // sum(widths) - figures.GAP) // 8
    expected = figures.compose(colours(images), scale, figures.GAP)
    np.testing.assert_array_equal(picture, expected)


def test_save_writes_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "samples.png"
    figure = figures.samples(np.zeros((4, 8, 8)))
    figures.save(figure, path)
    before = path.read_bytes()
    assert before.startswith(b"\x89PNG") and [file.name for file in tmp_path.iterdir()] == ["samples.png"]

    def half(target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", half)
    for target in (path, tmp_path / "new.png"):
        with pytest.raises(OSError, match="disk full"):
            figures.save(figure, target)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["samples.png"]
