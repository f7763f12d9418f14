"""Checkpoints come back bit for bit, or not at all and with a sentence that says why."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aevb import checkpoints as module
from aevb.checkpoints import MANIFEST, Checkpoints
from aevb.errors import InputError
from aevb.learners import TrainState


def state(step):
    rng = np.random.default_rng(step)
    params = {"kernel": jnp.float32(rng.normal(size=(3, 4))), "bias": jnp.bfloat16(rng.normal(size=4))}
    return TrainState(
        step=jnp.int32(step),
        key=jax.random.key(step),
        params=params,
        opt_state=(jax.tree.map(lambda p: p * 2, params), jnp.uint32(2**31 + step)),
        ema_params=None,
        hyperparameters={"kl_weight": jnp.float32(0.1 * step)},
    )


def numbers(tree):
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree)


def assert_is(restored, step):
    expected = state(step)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    assert [x.dtype for x in jax.tree.leaves(restored)] == [x.dtype for x in jax.tree.leaves(expected)]
    jax.tree.map(np.testing.assert_array_equal, numbers(restored), numbers(expected))


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "run"
    saved = Checkpoints(folder, keep=2)
    for step in (10, 20):
        saved.save(step, state(step))
    saved.close()
    return folder


@pytest.fixture
def run(two_steps, tmp_path):
    """A copy of a run with the steps 10 and 20, to be damaged."""
    return shutil.copytree(two_steps, tmp_path / "run")


def restore(folder, **kwargs):
    opened = Checkpoints(folder, keep=2)
    try:
        return opened.restore(state(0), **kwargs)
    finally:
        opened.close()


def test_a_state_comes_back_bit_for_bit_with_its_key(run):
    restored, step, passed_over = restore(run)
    assert_is(restored, 20)
    assert (step, passed_over) == (20, [])
    np.testing.assert_array_equal(jax.random.normal(restored.key, (3,)), jax.random.normal(jax.random.key(20), (3,)))


def test_nothing_saved_restores_nothing(tmp_path):
    assert restore(tmp_path / "new") is None


def test_keep_is_how_many_steps_stay(tmp_path):
    saved = Checkpoints(tmp_path / "run", keep=2)
    for step in (1, 2, 3):
        saved.save(step, state(step))
    saved.close()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["2", "3"]


def files_of(step_folder):
    return sorted(str(p.relative_to(step_folder)) for p in step_folder.rglob("*") if p.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "truncate", "remove"])
def test_damage_in_any_file_of_arrays_is_noticed_and_the_step_before_restored(run, tmp_path, damage):
    names = [name for name in files_of(run / "20") if name.startswith("default/")]
    assert len(names) > 5
    for name in names:
        whole = (run / "20" / name).read_bytes()
        damage(run / "20" / name)
        restored, step, (sentence,) = restore(run)
        assert step == 10, name
        assert_is(restored, 10)
        assert str(run / "20") in sentence
        assert name.removeprefix("default/") in sentence
        (run / "20" / name).write_bytes(whole)
    assert restore(run)[1] == 20


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.unlink()], ids=["flip", "truncate", "remove"])
def test_a_damaged_manifest_vouches_for_nothing(run, damage):
    damage(run / "20" / MANIFEST)
    restored, step, (sentence,) = restore(run)
    assert_is(restored, 10)
    assert (step, "damaged" in sentence) == (10, True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize(
    "damage", [flip, truncate, lambda path: path.unlink(), lambda path: path.write_bytes(b"\xff\xfe[]")]
)
def test_orbaxs_notes_beside_the_arrays_can_be_lost_without_harm(run, name, damage):
    if not (run / "20" / name).exists():
        pytest.skip(f"this Orbax writes no {name}")
    damage(run / "20" / name)
    restored, step, passed_over = restore(run)
    assert (step, passed_over) == (20, [])
    assert_is(restored, 20)


def test_when_every_step_is_damaged_nothing_is_restored(run):
    flip(run / "20" / MANIFEST)
    (run / "10" / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"run/20 is damaged .*run/10 is damaged .*no whole checkpoint is left"):
        restore(run)


def test_what_cannot_be_read_at_this_moment_is_no_damage(run):
    (run / "20" / MANIFEST).unlink()
    (run / "20" / MANIFEST).symlink_to(MANIFEST)  # of itself: "too many levels of symbolic links"
    with pytest.raises(OSError, match="symbolic") as caught:
        restore(run)
    assert not isinstance(caught.value, InputError)


def test_a_forgotten_step_can_be_saved_again_and_an_earlier_one_is_never_passed_over_in_silence(run):
    flip(run / "20" / "default" / "_METADATA")
    assert restore(run)[1] == 10
    assert (run / "20").exists()
    opened = Checkpoints(run, keep=2)
    with pytest.raises(ValueError, match="step 15 is not saved"):
        opened.save(15, state(15))
    opened.forget_after(10)
    opened.save(20, state(20))
    opened.close()
    assert_is(restore(run)[0], 20)


def test_a_step_already_there_is_not_overwritten(run):
    opened = Checkpoints(run, keep=2)
    opened.save(20, state(99))
    opened.close()
    assert_is(restore(run)[0], 20)


def test_restoring_waits_for_the_save_under_way(tmp_path):
    saved = Checkpoints(tmp_path / "run")
    saved.save(1, state(1))
    restored, step, passed_over = saved.restore(state(0))
    assert (step, passed_over) == (1, [])
    assert_is(restored, 1)
    saved.close()


def test_unfinished_saves_are_ignored_and_swept_away_by_the_next_save_only(run):
    leftover = run / "30.orbax-checkpoint-tmp"
    shutil.copytree(run / "20", leftover)
    assert restore(run)[1] == 20
    assert leftover.exists()  # it may be the save under way of another process
    opened = Checkpoints(run, keep=2)
    opened.save(30, state(30))
    opened.close()
    assert not leftover.exists()
    assert_is(restore(run)[0], 30)


def test_a_reader_does_not_disturb_the_save_of_a_run(run):
    writer = Checkpoints(run, keep=2)
    writer.save(30, state(30))
    assert restore(run)[1] in (20, 30)
    writer.save(40, state(40))
    writer.close()
    restored, step, passed_over = restore(run)
    assert (step, passed_over) == (40, [])
    assert_is(restored, 40)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_one_sentence_and_the_step_before_stays(run, monkeypatch):
    opened = Checkpoints(run, keep=2)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(module, "_sha256", full)
        opened.save(30, state(30))
        with pytest.raises(InputError, match=r"cannot be written to .*run \(no space is left on the disk\)"):
            opened.wait()
    opened.close()
    assert_is(restore(run)[0], 20)
    again = Checkpoints(run, keep=2)
    again.save(30, state(30))  # once there is room
    again.close()
    assert_is(restore(run)[0], 30)


@pytest.mark.parametrize("place", ["save", "wait_until_finished"])
def test_a_disk_error_of_orbax_is_one_sentence(tmp_path, monkeypatch, place):
    opened = Checkpoints(tmp_path / "run")

    def fails(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: writing 'd/1': No space left on device")

    monkeypatch.setattr(opened._manager, place, fails)
    with pytest.raises(InputError, match=r"no space is left on the disk.* make room"):
        opened.save(1, state(1))


@pytest.mark.parametrize("error", [ValueError("a bug"), TimeoutError("another process did not come")])
def test_other_errors_keep_their_own_name(tmp_path, monkeypatch, error):
    opened = Checkpoints(tmp_path / "run")

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(opened._manager, "save", fails)
    with pytest.raises(type(error)) as caught:
        opened.save(1, state(1))
    assert caught.value is error
