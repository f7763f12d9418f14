"""What the tests of TPU VMs share: stand-ins of Google and its hosts, and the machines that are asked for."""

import pathlib
from collections.abc import Iterator

import pytest
import tpu_world
from tpu_world import ZONE, World

from launch.accelerators import accelerator
from launch.gcloud import Target


@pytest.fixture
def world(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with tpu_world.placed(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def four() -> Target:
    """One spot slice of four hosts."""
    return Target("vae", ZONE, accelerator("v5litepod-16", ZONE), spot=True)
