"""Runs in an object store: gs:// against a stand-in server that speaks Google Cloud Storage's JSON API.

gcsfs, TensorStore and google-cloud-storage are the real ones; the real service was not asked.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from unittest import mock

import pytest
from conftest import SMALL
from etils import epath
from test_train import FIGURES, without_times

from aevb.errors import InputError
from experiments import cli, progress, workdir

pytest.importorskip("gcsfs", reason="the extra gcs is not installed")
pytest.importorskip("gcp_storage_emulator", reason="the extra test is not installed")


@dataclasses.dataclass
class Store:
    """The stand-in, asked by its own protocol: a second reader beside gcsfs."""

    address: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": self.address,  # of gcsfs and google-cloud-storage
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it asks Google itself what kind of bucket it is
        }

    def call(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(urllib.request.Request(self.address + path, method=method, data=body)) as answer:
            return answer.read()

    def names(self, prefix: str) -> list[str]:
        found = json.loads(self.call(f"/storage/v1/b/runs/o?prefix={prefix}"))
        return sorted(item["name"].removeprefix(prefix) for item in found.get("items", []))

    def read(self, name: str) -> bytes:
        return self.call(f"/storage/v1/b/runs/o/{urllib.parse.quote(name, safe='')}?alt=media")

    def write(self, name: str, content: bytes) -> None:
        place = f"/upload/storage/v1/b/runs/o?uploadType=media&name={urllib.parse.quote(name, safe='')}"
        self.call(place, "POST", content)

    def has_row(self, name: str, step: int) -> bool:
        time.sleep(0.1)  # it answers one after another
        return name in self.names("") and f'"step": {step},' in self.read(name).decode()


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    server = pathlib.Path(__file__).parent / "store_server.py"
    with subprocess.Popen(
        [sys.executable, server], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=server.parent
    ) as process:
        yield Store(f"http://localhost:{int(process.stdout.readline())}")
        process.kill()


def test_a_stopped_run_goes_on_and_ends_like_one_on_a_disk(command, finished: pathlib.Path, store: Store):
    args = [*SMALL, "--workdir=gs://runs/digits"]
    ended = command(
        "train",
        *args,
        sigterm_when=lambda: store.has_row("digits/metrics.jsonl", 10),
        **store.env,
    )
    assert ended.code == 75, ended.err
    step = max(name.split("/")[0] for name in store.names("digits/checkpoints/last/"))
    assert f"at step {step}, saved" in ended.err
    # What a killed process leaves where nothing can be renamed: a step without the marker of a whole one.
    for name in (f"{step}/_CHECKPOINT_METADATA", f"{step}/default/_METADATA"):
        half = name.replace(step, "30", 1)
        store.write(f"digits/checkpoints/last/{half}", store.read(f"digits/checkpoints/last/{name}"))
    ended = command.ok("train", *args, **store.env)
    assert f"resuming gs://runs/digits at step {step} of 38" in ended.out
    for name in ("metrics.jsonl", "summary.json", "evaluation.json"):
        ours, theirs = (
            without_times(
                [json.loads(line) for line in text.splitlines()] if name == "metrics.jsonl" else json.loads(text)
            )
            for text in (store.read(f"digits/{name}"), (finished / name).read_bytes())
        )
        assert ours == theirs, name
    last = store.names("digits/checkpoints/last/")
    assert {name.split("/")[0] for name in last} == {"30", "38"}
    assert {"30/commit_success.txt", "38/commit_success.txt", "38/sha256.json"} <= set(last)
    pictures = {name: store.read(f"digits/figures/{name}") for name in store.names("digits/figures/")}
    assert sorted(pictures) == [f"{name}.png" for name in FIGURES]
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert len(store.names("digits/tensorboard/")) >= 2
    assert store.read("digits/report.html").count(b"data:image/png;base64") >= len(FIGURES)
    assert not [name for name in store.names("digits/") if ".tmp" in name]


def test_it_is_drawn_and_checked_where_it_lies(command, store: Store):
    """After the run above; then a bit flips."""
    at = "--workdir=gs://runs/digits"
    command.ok("generate", at, "--what=samples", "--num=4", **store.env)
    assert store.read("digits/figures/samples.npz").startswith(b"PK")
    for name in store.names("digits/checkpoints/last/"):
        if "/d/" in name:
            content = bytearray(store.read(f"digits/checkpoints/last/{name}"))
            content[len(content) // 2] ^= 4
            store.write(f"digits/checkpoints/last/{name}", bytes(content))
    ended = command("evaluate", at, "--num_samples=3", **store.env)
    assert ended.code == 2
    assert "gs://runs/digits/checkpoints/last/38 is damaged" in ended.err
    assert "has changed since it was saved" in ended.err


def test_a_bucket_that_is_not_there(command, store: Store):
    ended = command("train", *SMALL, "--workdir=gs://nowhere/digits", **store.env)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert "gs://nowhere is not there" in ended.err
    assert len(json.loads(store.call("/storage/v1/b"))["items"]) == 1  # and none was made


def test_what_passes_is_worth_another_start_and_what_does_not_is_not(monkeypatch: pytest.MonkeyPatch):
    import aiohttp
    import google.auth.exceptions
    import requests
    from gcsfs.retry import HttpError
    from google.api_core import exceptions

    passing = [HttpError({"code": code, "message": "wait"}) for code in (429, 500, 503)]
    passing += [exceptions.BadGateway("502"), exceptions.TooManyRequests("429"), aiohttp.ClientConnectionError("reset")]
    passing += [google.auth.exceptions.TransportError("no answer"), requests.exceptions.ProxyError("502")]
    staying = [HttpError({"code": 400, "message": "no"}), exceptions.Forbidden("403")]
    staying += [google.auth.exceptions.DefaultCredentialsError("none")]
    assert {cli.explained(error)[1] for error in passing} == {cli.PREEMPTED}
    assert {cli.explained(error)[1] for error in staying} == {cli.WRONG_CALL}
    assert cli.explained(RuntimeError("a bug")) is None
    monkeypatch.delitem(sys.modules, "gcsfs")  # as where no path is of a store
    assert cli.explained(exceptions.Forbidden("of another library")) is None


def test_rows_are_written_once_a_call(monkeypatch: pytest.MonkeyPatch):
    written = []
    monkeypatch.setattr(workdir, "write_text", lambda path, text: written.append((os.fspath(path), text)))
    monkeypatch.setattr("tensorboardX.SummaryWriter", mock.Mock())
    rows = [{"step": step, "split": split, "elbo": -1.0} for step in (5, 10) for split in ("train", "validation")]
    journal = progress.Journal(epath.Path("gs://runs/digits"), [], 10, 0, shown=False)
    for row in rows[:2]:
        journal.add(row)
    journal.write()
    for row in rows[2:]:
        journal.add(row)
    journal.write()
    journal.close()
    assert {path for path, _ in written} == {"gs://runs/digits/metrics.jsonl"}
    assert [[json.loads(line) for line in text.splitlines()] for _, text in written] == [rows[:2], rows]


def test_nobody_is_signed_in(monkeypatch: pytest.MonkeyPatch):
    import google.auth

    def default() -> None:
        raise google.auth.exceptions.DefaultCredentialsError("no credentials\nwere found")

    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(google.auth, "default", default)
    with pytest.raises(InputError, match=r"no credentials were found.*gcloud auth application-default login"):
        workdir.at("gs://runs/digits")


@pytest.mark.parametrize("path", ["gs://", "s3://runs/digits", "gs:///digits"])
def test_no_path_of_a_bucket(path: str):
    with pytest.raises(InputError, match=r"gs://BUCKET/FOLDER"):
        workdir.at(path)


def test_the_extra_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://runs/digits needs gcsfs: pip install -e '\.\[gcs\]'"):
        workdir.at("gs://runs/digits")


def test_a_folder_of_a_disk_is_itself(tmp_path: pathlib.Path):
    assert os.fspath(workdir.at(str(tmp_path))) == str(tmp_path)
