"""Four CPU devices and no rank promotion for every test; the folder of real data where there is one."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are cores: what waits, for Ray or until a death is noticed, computes little."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


@pytest.fixture(autouse=True, scope="module")
def compiled_code_is_let_go():
    """After each file of tests: what is compiled maps memory, of which Linux allows a process 65,530 pieces."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The folder with mnist/, frey_face/, ...; a test that needs it skips elsewhere."""
    folder = os.environ.get("AEVB_DATA_DIR", "")
    if not folder:
        pytest.skip("AEVB_DATA_DIR names no folder with the real data sets")
    return folder
