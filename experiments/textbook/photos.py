"""Small colour images without a download: the two photographs that come with scikit-learn, cut into squares.

    python -m experiments.textbook.photos --out=runs/squares
    python -m experiments.train --config=experiments/configs/conv.py:folder --config.data.dir=runs/squares \
        --workdir=runs/photos

Writes a PNG a square into a folder a photograph, `china` and `flower`, which are its labels.
"""

import numpy as np
from absl import flags
from etils import epath

from aevb.errors import InputError
from experiments import cli


def squares(photo: np.ndarray, side: int) -> np.ndarray:
    """The squares `[N, side, side, C]` that an image `[H, W, C]` is cut into, row by row; what is left over is lost."""
    height, width = (length // side for length in photo.shape[:2])
    kept = photo[: height * side, : width * side]
    return kept.reshape(height, side, width, side, -1).swapaxes(1, 2).reshape(height * width, side, side, -1)


def main(argv: list[str]) -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    cli.refuse(argv)
    out = epath.Path(cli.required("out", "runs/squares"))
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out={out} is not empty: choose another folder, or empty it, for images of one size")
    for name in ("china", "flower"):
        folder = out / name
        folder.mkdir(parents=True)
        images = squares(load_sample_image(f"{name}.jpg"), flags.FLAGS.side)
        for i, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{i:04d}.png")
        print(f"{folder}: {len(images):,} squares of {flags.FLAGS.side} x {flags.FLAGS.side} pixels")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The folder that they are written to.")
    flags.DEFINE_integer("side", 16, "Of a square, in pixels.", lower_bound=1, upper_bound=427)
    cli.run(main)
