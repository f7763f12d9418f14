"""Published files, checked by content: MNIST, Fashion-MNIST, binarized MNIST, Frey Face; sklearn's digits."""

import dataclasses
import functools
import gzip
import hashlib
import math
import struct
import threading
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from aevb.data.splits import Split
from aevb.errors import InputError

MNIST_MD5 = {  # of the uncompressed files
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
BINARIZED_SHA256 = {
    "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
WAY_OUT = (
    "put the published files into a folder and name it by --config.data.dir or AEVB_DATA_DIR "
    "(it holds mnist/, frey_face/, ...)"
)
FREY_SHA256 = "fbd70c2c992104024a20f4d253da1a1132eb6bf8ed142dccbe7d2b1743b705c4"  # of `ff`, row by row


@dataclasses.dataclass(frozen=True)
class Published:
    """Where a data set is published, and how its files are read.

    Attributes:
      url: the folder of the files on the web.
      files: name of each file without `.gz` -> (size, sha256) of the download, or None if not known.
      suffix: what the download's name has after that.
      read: paths by file name -> splits.
    """

    url: str
    files: Mapping[str, tuple[int, str] | None]
    suffix: str
    read: Callable[[Mapping[str, Path]], dict[str, Split]]


def read_content(path: Path) -> bytes:
    """The bytes of a file, decompressed if it is gzip (told by its first bytes, whatever its name)."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}); it may be cut short, so fetch it again") from error


def parse_idx(content: bytes, ndim: int, path: Path) -> np.ndarray:
    """An IDX file of uint8: bytes 0, 0, 8, ndim; each dimension as a big-endian uint32; the values.

    Args:
      content: the decompressed file.
      ndim: 3 for images, 1 for labels.
      path: for messages.

    Raises:
      InputError: another magic number, or fewer or more values than the header says.
    """
    magic, expected = content[:4].hex(), f"000008{ndim:02x}"
    header = 4 + 4 * ndim
    if magic != expected or len(content) < header:
        raise InputError(f"{path} starts with {magic or 'nothing'}, not with {expected} of IDX; fetch it again")
    shape = struct.unpack(f">{ndim}I", content[4:header])
    found, needed = len(content) - header, math.prod(shape)
    if found != needed:
        raise InputError(f"{path} holds {found} values but its header {list(shape)} says {needed}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def parse_amat(content: bytes, path: Path, pixels: int = 784) -> np.ndarray:
    """Larochelle's text of binary images, one per line, as uint8 0/255 `[N, pixels]`.

    Raises:
      InputError: anything but `pixels` digits 0 or 1 per line, with one space between.
    """
    text = np.frombuffer(content, np.uint8)
    if len(text) == 0 or len(text) % (2 * pixels):
        raise InputError(f"{path} has {len(text)} bytes, no multiple of {2 * pixels} (a line); fetch it again")
    text = text.reshape(-1, pixels, 2)
    separators = np.full(pixels, ord(" "), np.uint8)
    separators[-1] = ord("\n")
    wrong = (text[..., 0] & 0xFE != ord("0")) | (text[..., 1] != separators)
    if wrong.any():
        row, pixel = np.argwhere(wrong)[0]
        raise InputError(f"{path}: line {row + 1}, value {pixel + 1} is not a plain 0 or 1; fetch it again")
    return (text[..., 0] & 1) * np.uint8(255)


def _check_digest(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise InputError(
            f"{path} is not the published file (its content has the checksum {found}, expected {expected}); "
            "fetch it again"
        )


def _read_idx_splits(paths: Mapping[str, Path], published_md5: Mapping[str, str]) -> dict[str, Split]:
    """Four IDX files; files with a `published_md5` must have it, others must not be MNIST's."""
    splits = {}
    for part, prefix, count in (("train", "train", 60000), ("test", "t10k", 10000)):
        arrays, digests = {}, {}
        for stem, ndim in ((f"{prefix}-images-idx3-ubyte", 3), (f"{prefix}-labels-idx1-ubyte", 1)):
            content = read_content(paths[stem])
            arrays[stem] = parse_idx(content, ndim, paths[stem])
            digests[stem] = hashlib.md5(content, usedforsecurity=False).hexdigest()
        (images, labels), (image_path, label_path) = arrays.values(), [paths[stem] for stem in arrays]
        if len(labels) != len(images):
            raise InputError(f"{label_path} has {len(labels)} labels but {image_path} has {len(images)} images")
        if images.shape != (count, 28, 28):
            raise InputError(f"{image_path} holds images {list(images.shape)}, expected {[count, 28, 28]}")
        if labels.max() > 9:
            raise InputError(f"{label_path} holds the label {labels.max()}, expected 0 to 9")
        for stem, digest in digests.items():
            if published_md5:
                _check_digest(paths[stem], digest, published_md5[stem])
            elif digest == MNIST_MD5[stem]:
                raise InputError(f"{paths[stem]} is MNIST's file, not Fashion-MNIST's; put the right one there")
        splits[part] = Split(images[..., None], labels.astype(np.int32))
    return splits


def _read_binarized_mnist(paths: Mapping[str, Path]) -> dict[str, Split]:
    splits = {}
    for part, stem in zip(("train", "validation", "test"), BINARIZED_SHA256, strict=True):
        content = read_content(paths[stem])
        images = parse_amat(content, paths[stem])
        _check_digest(paths[stem], hashlib.sha256(content).hexdigest(), BINARIZED_SHA256[stem])
        splits[part] = Split(images.reshape(-1, 28, 28, 1), None)
    return splits


def _read_frey_face(paths: Mapping[str, Path]) -> dict[str, Split]:
    import io

    import scipy.io

    (path,) = paths.values()
    content = read_content(path)
    try:
        variables = scipy.io.loadmat(io.BytesIO(content))
    except Exception as error:  # on damaged files scipy raises nearly anything, MatReadError, TypeError, zlib.error...
        raise InputError(f"{path} is no readable MATLAB file ({type(error).__name__}); fetch it again") from error
    faces = variables.get("ff")
    if faces is None:
        keys = ", ".join(key for key in variables if not key.startswith("__")) or "nothing"
        raise InputError(f"{path} holds {keys}, expected the key ff; fetch frey_rawface.mat again")
    if faces.shape != (560, 1965) or faces.dtype != np.uint8:
        raise InputError(f"{path}: ff is {faces.dtype} {list(faces.shape)}, expected uint8 [560, 1965]; fetch it again")
    _check_digest(path, hashlib.sha256(np.ascontiguousarray(faces)).hexdigest(), FREY_SHA256)
    return {"train": Split(np.ascontiguousarray(faces.T).reshape(-1, 28, 20, 1), None)}  # a face per column


def _idx_files(*downloads: tuple[int, str]) -> dict[str, tuple[int, str]]:
    return dict(zip(MNIST_MD5, downloads, strict=True))


PUBLISHED = {
    "mnist": Published(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        _idx_files(
            (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
        ".gz",
        functools.partial(_read_idx_splits, published_md5=MNIST_MD5),
    ),
    "fashion_mnist": Published(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        _idx_files(
            (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
        ".gz",
        functools.partial(_read_idx_splits, published_md5={}),  # no source lists checksums of its content
    ),
    "binarized_mnist": Published(
        "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/",
        {
            stem: (count * 1568, BINARIZED_SHA256[stem])
            for stem, count in zip(BINARIZED_SHA256, (50000, 10000, 10000), strict=True)
        },
        "",
        _read_binarized_mnist,
    ),
    "frey_face": Published("https://cs.nyu.edu/~roweis/data/", {"frey_rawface.mat": None}, "", _read_frey_face),
}


def source_root(data_dir: Path, name: str) -> Path:
    """`data_dir/name` if that exists, else `data_dir` itself."""
    return data_dir / name if (data_dir / name).exists() else data_dir


def local_files(name: str, folder: Path) -> dict[str, Path] | None:
    """The published files (gzipped or not) of the set `name` in `folder`; None if there are none of them.

    Raises:
      InputError: some are there and some are not.
    """
    paths = {}
    for stem in PUBLISHED[name].files:
        found = [path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
        paths[stem] = found[0] if found else None
    missing = [stem for stem, path in paths.items() if path is None]
    if len(missing) == len(paths):
        return None
    if missing:
        raise InputError(f"{folder} lacks {missing[0]} (or {missing[0]}.gz) of {name}; add it to the others")
    return paths


def read_published(name: str, data_dir: Path | None, memory_limit_mb: int) -> dict[str, Split]:
    """The own splits of a PUBLISHED set: from local files if there are any, else through its TFDS builder."""
    paths = local_files(name, source_root(data_dir, name)) if data_dir is not None else None
    if paths is not None:
        return PUBLISHED[name].read(paths)
    from aevb.data.tfds_source import read_tfds

    return read_tfds(f"tfds:aevb_{name}", data_dir, max(memory_limit_mb, 1024))  # 55 MB at most: always in memory


def read_digits(name: str, data_dir: Path | None, memory_limit_mb: int) -> dict[str, Split]:
    """sklearn's 1797 digits, 8x8 in 17 grey levels, scaled to 0..255; they come with the package."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return {"train": Split(images, digits.target.astype(np.int32))}


def check_reachable(url: str) -> None:
    """Asks for the head of `url`, for 5 seconds at most.

    Raises:
      InputError: no answer, or the server says that it is in trouble.
    """
    failure: str | None = "no answer in time"

    def ask() -> None:
        nonlocal failure
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
                failure = None
        except urllib.error.HTTPError as error:
            error.close()
            failure = str(error) if error.code >= 500 else None  # 403 or 405: there, but it answers no HEAD
        except (OSError, ValueError) as error:
            failure = str(error)

    thread = threading.Thread(target=ask, daemon=True)  # a thread, since looking up a name has no timeout
    thread.start()
    thread.join(6)
    if failure:
        raise InputError(f"no local files, and cannot reach {urllib.parse.urlsplit(url).netloc} ({failure}); {WAY_OUT}")
