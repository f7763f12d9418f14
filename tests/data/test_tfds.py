"""TFDS: the builders against the direct readers, the lazy road against memory, and no network."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import io
import pickle
import socket
import sys
import threading
import time
import urllib.error

import numpy as np
import pytest
from PIL import Image

from aevb import data
from aevb.data import published
from aevb.errors import InputError

pytest.importorskip("tensorflow_datasets", reason="the extra aevb[tfds] is not installed")

SIZES = {"validation_size": 0.1, "test_size": 0.1, "seed": 0, "memory_limit_mb": 100}
COUNTS = {"train": 30, "test": 20}


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A folder with a small mnist/ and a tfds/, and a reader that takes so small a set; no network."""
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    generator = np.random.default_rng(0)
    for stem in published.MNIST_MD5:
        count = COUNTS["train" if "train" in stem else "test"]
        shape = (count, 28, 28) if "images" in stem else (count,)
        values = generator.integers(0, 256 if "images" in stem else 10, shape, np.uint8)
        header = bytes([0, 0, 8, values.ndim]) + np.array(shape, ">u4").tobytes()
        (tmp_path / "mnist").mkdir(exist_ok=True)
        (tmp_path / "mnist" / f"{stem}.gz").write_bytes(gzip.compress(header + values.tobytes()))
    (tmp_path / "tfds").mkdir()
    small = dataclasses.replace(published.PUBLISHED["mnist"], read=read_small)
    monkeypatch.setitem(published.PUBLISHED, "mnist", small)
    return tmp_path


def read_small(paths):
    def idx(stem, ndim):
        return published.parse_idx(published.read_content(paths[stem]), ndim, paths[stem])

    return {
        part: data.Split(
            idx(f"{prefix}-images-idx3-ubyte", 3)[..., None],
            idx(f"{prefix}-labels-idx1-ubyte", 1).astype(np.int32),
        )
        for part, prefix in (("train", "train"), ("test", "t10k"))
    }


def no_network(request, timeout):
    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


def error(name, **kwargs):
    with pytest.raises(InputError) as caught:
        data.load(name, **{"data_dir": None} | SIZES | kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(one, other):
    for part in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(one, part).examples, getattr(other, part).examples)
        np.testing.assert_array_equal(getattr(one, part).labels, getattr(other, part).labels)
        assert getattr(other, part).labels.dtype == np.int32


def test_builder_equals_direct_reader(local, capfd):
    direct = data.load("mnist", data_dir=str(local), **SIZES)
    data.load("tfds:aevb_mnist", data_dir=str(local), **SIZES)  # prepares from local/mnist
    (local / "mnist").rename(local / "elsewhere")  # from here on, only the prepared copy is there
    assert_same(direct, data.load("mnist", data_dir=str(local), **SIZES))
    assert_same(direct, data.load("mnist", data_dir=str(local), **SIZES | {"memory_limit_mb": 0}))
    assert direct.train.examples.shape == (27, 28, 28, 1)
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""


def test_lazy_road_equals_memory(local):
    whole = data.load("tfds:aevb_mnist", data_dir=str(local), **SIZES)
    lazy = data.load("tfds:aevb_mnist", data_dir=str(local), **SIZES | {"memory_limit_mb": 0})
    for part in ("train", "validation", "test"):
        expected, split = getattr(whole, part), getattr(lazy, part)
        assert not isinstance(split.examples, np.ndarray)
        np.testing.assert_array_equal(split.labels, expected.labels)
        for examples in (split.examples, pickle.loads(pickle.dumps(split.examples))):
            assert len(examples) == len(expected.examples)
            for i in range(len(examples)):
                np.testing.assert_array_equal(examples[i], expected.examples[i])


def test_interrupted_preparation_is_not_taken_for_a_finished_one(local, monkeypatch):
    good = published.PUBLISHED["mnist"]

    class Dying(Exception):
        pass

    class Examples(list):
        def __iter__(self):
            yield np.zeros((28, 28, 1), np.uint8)
            raise Dying

    dying = dataclasses.replace(good, read=lambda paths: {"train": data.Split(Examples(), np.zeros(2, int))})
    monkeypatch.setitem(published.PUBLISHED, "mnist", dying)
    with pytest.raises(Dying):
        data.load("tfds:aevb_mnist", data_dir=str(local), **SIZES)
    assert not list((local / "tfds" / "aevb_mnist").glob("*"))  # TFDS removes what it had begun
    monkeypatch.setitem(published.PUBLISHED, "mnist", good)
    data.load("tfds:aevb_mnist", data_dir=str(local), **SIZES)

    # A killed process cannot remove it: what it leaves behind has the name of an incomplete version.
    finished = local / "tfds" / "aevb_mnist" / "1.0.0"
    finished.rename(finished.with_name("incomplete.ABCDEF_1.0.0"))
    (local / "mnist").rename(local / "elsewhere")
    assert "cannot reach storage.googleapis.com" in error("tfds:aevb_mnist", data_dir=str(local))


def test_damaged_prepared_copy(local):
    data.load("tfds:aevb_mnist", data_dir=str(local), **SIZES)
    finished = local / "tfds" / "aevb_mnist" / "1.0.0"
    (records,) = finished.glob("*-train.array_record-*")
    records.write_bytes(records.read_bytes()[:20000])
    message = error("tfds:aevb_mnist", data_dir=str(local))
    assert f"{finished} is damaged" in message
    records.unlink()
    assert f"{finished} is damaged" in error("tfds:aevb_mnist", data_dir=str(local))


def test_bad_local_files_leave_nothing_prepared(local):
    (local / "mnist" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"junk")
    assert f"{local}/mnist/t10k-labels-idx1-ubyte.gz" in error("tfds:aevb_mnist", data_dir=str(local))
    assert not list((local / "tfds" / "aevb_mnist").glob("*"))


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def test_download_road(local, monkeypatch):
    """From a server on this machine: what arrives equals the files, and a wrong checksum prepares nothing."""
    direct = data.load("mnist", data_dir=str(local), **SIZES)
    (local / "mnist").rename(local / "served")
    monkeypatch.undo()
    known = {}
    for stem in published.MNIST_MD5:
        content = (local / "served" / f"{stem}.gz").read_bytes()
        known[stem] = len(content), hashlib.sha256(content).hexdigest()
    stem = "t10k-labels-idx1-ubyte"
    wrong = known | {stem: (known[stem][0], "0" * 64)}
    unknown = dict.fromkeys(known)  # as Frey Face's

    handler = functools.partial(QuietHandler, directory=str(local / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/"
        try:
            for case, files in enumerate((wrong, known, unknown)):
                folder = local / f"case_{case}"
                (folder / "tfds").mkdir(parents=True)
                source = dataclasses.replace(published.PUBLISHED["mnist"], url=url, files=files, read=read_small)
                monkeypatch.setitem(published.PUBLISHED, "mnist", source)
                if files is wrong:
                    message = error("mnist", data_dir=str(folder))
                    assert f"{url}{stem}.gz" in message and "wrong checksum" in message
                    assert not list((folder / "tfds" / "aevb_mnist").glob("*"))
                else:
                    assert_same(direct, data.load("mnist", data_dir=str(folder), **SIZES))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "binarized_mnist", "frey_face", "tfds:aevb_mnist"])
def test_no_network(tmp_path, monkeypatch, name):
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    (tmp_path / "tfds").mkdir()
    start = time.monotonic()
    message = error(name, data_dir=str(tmp_path))
    assert time.monotonic() - start < 10
    host = published.PUBLISHED[name.removeprefix("tfds:aevb_")].url.split("/")[2]
    assert f"cannot reach {host}" in message and "AEVB_DATA_DIR" in message and "--config.data.dir" in message


def test_a_name_server_that_never_answers(monkeypatch):
    def hang(request, timeout: float) -> None:
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", hang)
    monkeypatch.setattr("threading.Thread.join", lambda self, timeout: None)
    with pytest.raises(InputError, match=r"cannot reach example\.org .no answer in time"):
        published.check_reachable("https://example.org/file")


@pytest.mark.parametrize(("code", "reachable"), [(403, True), (503, False)])
def test_reachability_by_status(monkeypatch, code, reachable):
    def answer(request, timeout):
        raise urllib.error.HTTPError(request.full_url, code, "status", {}, None)

    monkeypatch.setattr("urllib.request.urlopen", answer)
    if reachable:
        published.check_reachable("https://example.org/file")
    else:
        with pytest.raises(InputError, match="503"):
            published.check_reachable("https://example.org/file")


def test_tfds_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    message = error("mnist", data_dir=str(tmp_path))
    assert "pip install -e '.[tfds]'" in message and "AEVB_DATA_DIR" in message


def test_names_that_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path / "tfds").mkdir()
    start = time.monotonic()
    assert "knows no data set 'no_such_set'" in error("tfds:no_such_set", data_dir=str(tmp_path))
    assert "knows no data set 'no such set'" in error("tfds:no such set", data_dir=str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = error("tfds:cifar10", data_dir=str(tmp_path))
    assert "cifar10 is not prepared" in message and "TensorFlow" in message and str(tmp_path) in message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # as if TensorFlow were there
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    assert "cannot reach www.cs.toronto.edu" in error("tfds:cifar10", data_dir=str(tmp_path))
    assert time.monotonic() - start < 10


def prepared(tmp_path, name, features, records, file_format="array_record", split="train"):
    """A set prepared by a builder made for the test; its classes are not registered, so only files remain."""
    import tensorflow_datasets as tfds

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    members = {
        "__module__": __name__,
        "VERSION": tfds.core.Version("1.0.0"),
        "name": name,
        "_info": _info,
        "_split_generators": lambda self, dl_manager: {split: iter(list(enumerate(records)))},
        "_generate_examples": lambda self: (),
    }
    with tfds.core.registered.skip_registration():
        builder = type(name, (tfds.core.GeneratorBasedBuilder,), members)
    from aevb.data.tfds_source import _quiet

    with _quiet():
        builder(data_dir=tmp_path, file_format=file_format).download_and_prepare()


@pytest.mark.parametrize("memory_limit_mb", [0, 1])
def test_png_set_with_labels(tmp_path, memory_limit_mb):
    import tensorflow_datasets as tfds

    def png(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0]).save(file, "png")
        file.seek(0)
        return file

    images = np.random.default_rng(0).integers(0, 256, (6, 3, 2, 1), np.uint8)
    features = {
        "image": tfds.features.Image(shape=(3, 2, 1)),
        "label": tfds.features.ClassLabel(num_classes=9),
    }
    prepared(tmp_path, "png_set", features, [{"image": png(x), "label": i} for i, x in enumerate(images)])
    sizes = SIZES | {"test_size": 0, "validation_size": 0, "memory_limit_mb": memory_limit_mb}
    train = data.load("tfds:png_set", data_dir=str(tmp_path), **sizes).train
    assert sorted(train.labels) == list(range(6))  # TFDS has shuffled them
    for i, label in enumerate(train.labels):
        np.testing.assert_array_equal(train.examples[i], images[label])


def test_sets_prepared_elsewhere(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Tensor(shape=(None, 2, 1), dtype=np.uint8, encoding="bytes")
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 2, 1), np.uint8)
    prepared(tmp_path, "plain_set", {"image": image}, [{"image": x} for x in images])
    loaded = data.load("tfds:plain_set", data_dir=str(tmp_path), **SIZES | {"test_size": 2})
    assert loaded.event_shape == (3, 2, 1) and loaded.train.labels is None
    parts = [loaded.train.examples, loaded.validation.examples, loaded.test.examples]
    assert sorted(np.concatenate(parts).tolist()) == sorted(images.tolist())

    prepared(tmp_path, "ragged_set", {"image": image}, [{"image": x} for x in [images[0], images[0][:2]]])
    assert "tfds:ragged_set train image 1" in error("tfds:ragged_set", data_dir=str(tmp_path))
    prepared(tmp_path, "text_set", {"text": tfds.features.Text()}, [{"text": "a"}])
    assert "no feature image; it has text" in error("tfds:text_set", data_dir=str(tmp_path))
    prepared(tmp_path, "test_set", {"image": image}, [{"image": images[0]}], split="test")
    assert "no split train; it has test" in error("tfds:test_set", data_dir=str(tmp_path))
