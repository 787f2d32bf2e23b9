import errno
import json
import resource
import shutil
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.training.early_stopping import EarlyStopping
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.core.errors import UserError
from experiments.runs.checkpoints import (
    Checkpoints,
    rank_evaluation,
    restore_arrays,
    restore_best_variables,
    with_sharding,
)
from experiments.runs.integrity import find_damaged_file, read_checksums

STATE = {"weights": jnp.arange(6.0).reshape(2, 3), "rng": jax.random.key(3)}


@pytest.fixture
def opened(tmp_path):
    """Returns a function that opens the same folder, each time as a new process would."""
    managers = []

    def open_again() -> Checkpoints:
        for manager in managers:
            manager.close()
        managers[:] = [Checkpoints(tmp_path / "checkpoints")]
        return managers[0]

    yield open_again
    for manager in managers:
        manager.close()


@pytest.fixture
def kept(tmp_path):
    def steps() -> list[int]:
        found = (tmp_path / "checkpoints").glob("*")
        return sorted(int(folder.name) for folder in found if folder.name.isdigit())

    return steps


def metrics(accuracy, loss=1.0):
    return {"accuracy": accuracy, "loss": loss}


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_what_is_saved_comes_back(opened):
    progress = {"seconds": 1.5, "best": {"step": 3, "accuracy": 0.1}, "early_stopping": None}
    opened().save(3, STATE, progress, metrics(0.1))
    again = opened()
    state, read = again.restore(3, like(STATE))
    np.testing.assert_array_equal(state["weights"], STATE["weights"])
    assert jnp.array_equal(jax.random.key_data(state["rng"]), jax.random.key_data(STATE["rng"]))
    assert read == progress


def test_an_early_stopping_that_has_seen_nothing_survives_json(opened):
    # Its best loss so far is infinite, which JSON proper cannot say.
    fresh = {"best_metric": EarlyStopping().best_metric}
    opened().save(1, STATE, fresh, metrics(0.1))
    assert opened().restore(1, like(STATE))[1] == fresh


def test_empty_folder_has_no_checkpoint(opened):
    assert opened().restore_latest(like(STATE)) is None


def test_the_best_and_the_latest_are_kept(opened, kept):
    checkpoints = opened()
    for step, accuracy in enumerate((0.2, 0.9, 0.5, 0.6), start=1):
        checkpoints.save(step, STATE, {}, metrics(accuracy))
    checkpoints.save(5, STATE, {})
    checkpoints.save(6, STATE, {})
    checkpoints.wait()
    assert kept() == [2, 4, 5, 6]


def test_the_best_is_still_known_after_a_restart(opened, kept):
    opened().save(1, STATE, {}, metrics(0.9))
    checkpoints = opened()
    for step in (2, 3):
        checkpoints.save(step, STATE, {}, metrics(0.5))
    opened().save(4, STATE, {})
    opened().save(5, STATE, {}, metrics(0.1))
    opened()
    assert kept() == [1, 3, 4, 5]


@pytest.mark.parametrize("reopen", [False, True])
def test_of_equally_good_checkpoints_the_later_is_kept(opened, kept, reopen):
    # The loop notes the later one as the best, and reads it back at the end.
    checkpoints = opened()
    for step, accuracy in enumerate((0.9, 0.9, 0.9, 0.1, 0.1), start=1):
        checkpoints = opened() if reopen else checkpoints
        checkpoints.save(step, STATE, {}, metrics(accuracy))
    checkpoints.wait()
    assert kept() == [2, 3, 4, 5]


def test_a_higher_accuracy_is_better_and_then_a_lower_loss():
    for metric in ("accuracy", "miou"):

        def evaluation(value, loss, metric=metric):
            return rank_evaluation({metric: value, "loss": loss}, metric)

        assert evaluation(0.5, 9.0) > evaluation(0.4, 0.1)
        assert evaluation(0.5, 0.1) > evaluation(0.5, 0.2)


def test_progress_is_that_of_the_moment_of_saving(opened):
    # It is written in the background, while the loop goes on changing it.
    checkpoints = opened()
    progress = {"best": {"step": 1}, "early_stopping": {"patience_count": 0}}
    expected = json.loads(json.dumps(progress))
    checkpoints.save(1, STATE, progress, metrics(0.1))
    progress["best"] = None
    progress["early_stopping"]["patience_count"] = 5
    checkpoints.wait()
    assert checkpoints.restore(1, like(STATE))[1] == expected


def test_a_checkpoint_holds_its_step_although_the_next_step_overwrites_the_buffers(opened):
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    everywhere = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(
        lambda state: jax.tree.map(lambda x: x + 1, state),
        donate_argnums=0,
        out_shardings=everywhere,
    )
    # Large and small: what takes long to write, and what XLA may keep in place.
    start = {"large": jnp.zeros((512, 1024)), "small": jnp.zeros((), jnp.int32)}
    state = jax.device_put(start, everywhere)
    checkpoints = opened()
    for number in range(1, 4):
        state = step(state)
        expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
        checkpoints.save(number, state, {})
        pointers = {
            shard.data.unsafe_buffer_pointer() for shard in state["large"].addressable_shards
        }
        for _ in range(20):
            state = step(state)
        checkpoints.wait()
        shapes = with_sharding(jax.eval_shape(lambda: start), everywhere)
        restored, _ = checkpoints.restore(number, shapes)
        jax.tree.map(np.testing.assert_array_equal, restored, expected)
    # Otherwise this test would show nothing: buffers are in fact used again.
    later = {shard.data.unsafe_buffer_pointer() for shard in state["large"].addressable_shards}
    assert pointers & later


def test_a_checkpoint_that_was_cut_off_is_not_seen(opened, tmp_path, kept):
    opened().save(1, STATE, {}, metrics(0.1))
    opened()
    torn = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "half").write_text("")
    checkpoints = opened()
    assert kept() == [1]
    checkpoints.save(2, STATE, {}, metrics(0.2))
    checkpoints.wait()
    assert kept() == [1, 2]


NETWORK = {"params": {"weights": jnp.arange(6.0).reshape(2, 3)}}


def test_instead_of_a_damaged_checkpoint_the_one_before_is_read(opened, kept, tmp_path, capsys):
    checkpoints = opened()
    for step in (1, 2, 3):
        checkpoints.save(step, NETWORK, {"step": step}, metrics(0.1 * step))
    opened()
    tear(tmp_path / "checkpoints" / "3")
    checkpoints = opened()
    step, state, progress = checkpoints.restore_latest(like(NETWORK))
    assert step == 2 and progress == {"step": 2}
    jax.tree.map(np.testing.assert_array_equal, state, NETWORK)
    warned = capsys.readouterr().err
    assert "checkpoints/3/" in warned and "checkpoint 3 is not used; it is now" in warned
    assert (tmp_path / "damaged" / "3" / "state").is_dir() and kept() == [2]
    # The run goes on, and comes to the same step again.
    checkpoints.save(3, NETWORK, {"step": 3}, metrics(0.3))
    checkpoints.wait()
    assert opened().restore_latest(like(NETWORK))[0] == 3


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def tear(folder):
    """Truncates every file of a checkpoint's arrays."""
    files = [path for path in (folder / "state").rglob("*") if path.is_file()]
    assert files
    for file in files:
        truncate(file)


def empty(file):
    file.write_bytes(b"")


def delete(file):
    file.unlink()


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    """A folder with the checkpoints 1 and 2 of a state that lies on all devices: whole and in shares."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",))  # with an explicit axis
    shares, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    numbers = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    state = {
        "params": {"shares": jax.device_put(numbers, shares)},
        "step": jax.device_put(jnp.int32(3), whole),
        "rng": jax.device_put(jax.random.key(1), whole),
    }
    folder = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(folder / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state, {"step": step}, metrics(0.1 * step))
    checkpoints.close()
    return folder, state


@pytest.mark.parametrize("damage", [truncate, empty, delete, flip])
def test_no_damaged_file_is_read_as_something_else(two_checkpoints, tmp_path, capsys, damage):
    """Each file of the newest checkpoint in turn: not needed, or named and the one before used."""
    folder, state = two_checkpoints
    newest = folder / "checkpoints" / "2"
    files = [path.relative_to(folder) for path in newest.rglob("*") if path.is_file()]
    expected = jax.tree.leaves(jax.tree.map(numbers_of, state))
    fell_back = 0
    for number, file in enumerate(files):
        workdir = tmp_path / str(number)
        shutil.copytree(folder, workdir)
        damage(workdir / file)
        checkpoints = Checkpoints(workdir / "checkpoints")
        step, read, progress = checkpoints.restore_latest(like(state))
        checkpoints.close()
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.leaves(jax.tree.map(numbers_of, read)), expected
        )
        assert progress == {"step": step}
        warned = capsys.readouterr().err
        assert (workdir / "damaged" / "2").exists() == (step == 1) == ("damaged" in warned)
        if step == 1:
            assert f"warning: {workdir / file} is damaged" in warned
            fell_back += 1
    of_parts = [file for file in files if len(file.parts) > 3]
    assert fell_back == len(of_parts) > 10


def test_checksums_are_committed_with_a_checkpoint_and_are_not_needed(two_checkpoints, tmp_path):
    folder, state = two_checkpoints
    sums = read_checksums(folder / "checkpoints" / "2")
    assert {"progress/metadata", "metrics/metrics", "state/manifest.ocdbt"} < sums.keys()
    shutil.copytree(folder, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "2"
    data = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
    flip(data)
    with pytest.raises(ValueError, match="damaged"):
        restore_arrays(newest, ("params",))
    assert find_damaged_file(newest) == data
    flip(data)
    # A killed process leaves none without, but older checkpoints have none.
    (newest / "checksums.json").unlink()
    assert read_checksums(newest) == {} and find_damaged_file(newest) is None
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.restore_latest(like(state))[0] == 2
    checkpoints.close()


def numbers_of(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@pytest.mark.parametrize(
    "trouble",
    [
        MemoryError("no memory"),
        OSError(errno.EIO, "Input/output error"),
        ValueError("UNAVAILABLE: the storage does not answer"),
    ],
    ids=["memory", "disk", "storage"],
)
def test_passing_trouble_sets_no_checkpoint_aside(opened, kept, monkeypatch, trouble, capsys):
    opened().save(1, NETWORK, {"step": 1}, metrics(0.1))
    checkpoints = opened()

    def fail(step, like):
        raise trouble

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "restore", fail)
        with pytest.raises(UserError, match=r"cannot be read at the moment .* stays where it is"):
            checkpoints.restore_latest(like(NETWORK))
    assert checkpoints.restore_latest(like(NETWORK))[0] == 1
    assert kept() == [1] and not capsys.readouterr().err


def test_the_best_that_is_left_takes_the_place_of_a_damaged_one(opened, kept, tmp_path, capsys):
    checkpoints = opened()
    for step, accuracy in ((1, 0.8), (2, 0.9), (3, 0.1), (4, 0.2)):
        checkpoints.save(step, NETWORK, {}, metrics(accuracy))
    checkpoints.wait()
    best = {"step": 2, **metrics(0.9)}
    assert checkpoints.restore_best(best, like(NETWORK))[0] == best
    tear(tmp_path / "checkpoints" / "2")
    best, state = checkpoints.restore_best(best, like(NETWORK))
    assert best == {"step": 1, **metrics(0.8)} and kept() == [1, 3, 4]
    jax.tree.map(np.testing.assert_array_equal, state, NETWORK)
    assert "step 2, the best evaluation, cannot be used" in capsys.readouterr().err
    # One that has gone altogether.
    assert checkpoints.restore_best({"step": 9}, like(NETWORK))[0]["step"] == 1


def wait_for_writers(folder):
    """Waits until threads of this process write no more: those of a process that ended would be gone."""
    before = None
    while (now := sorted(folder.rglob("*"))) != before:
        before = now
        time.sleep(0.5)


def test_a_checkpoint_for_which_there_is_no_room_is_answered_and_the_others_stay(
    opened, kept, tmp_path, monkeypatch
):
    tracebacks = []  # that Python prints by itself
    monkeypatch.setattr(sys, "unraisablehook", tracebacks.append)
    checkpoints = opened()
    weights = jax.random.normal(jax.random.key(0), (256, 256))
    large = {"params": {str(number): weights + number for number in range(20)}}
    checkpoints.save(1, large, {"step": 1}, metrics(0.1))
    checkpoints.wait()
    before = {p: p.read_bytes() for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write further, as it does where a disk is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written to .*\(.*\).*free space"):
            checkpoints.save(2, large, {"step": 2}, metrics(0.2))
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {p: p.read_bytes() for p in before} == before
    assert kept() == [1] and not tracebacks
    wait_for_writers(tmp_path)
    again = Checkpoints(tmp_path / "checkpoints")
    assert again.restore_latest(like(large))[0] == 1
    again.save(2, large, {"step": 2}, metrics(0.2))
    again.close()
    # Nothing half written is left to fill the disk further.
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_parts_of_a_state_are_read_without_its_devices(two_checkpoints):
    folder, state = two_checkpoints
    read = restore_arrays(folder / "checkpoints" / "2", ("params", "step"))
    assert read.keys() == {"params", "step"} and isinstance(read["params"]["shares"], np.ndarray)
    np.testing.assert_array_equal(read["params"]["shares"], state["params"]["shares"])


@pytest.mark.parametrize(
    "average, batch_stats",
    [({"params": {"w": 2}, "batch_stats": {"mean": 3}}, 3), ({"w": 2}, 1), ({}, None)],
    ids=["average", "average of before", "none"],
)
def test_the_variables_of_an_evaluation_are_the_averaged_ones(tmp_path, average, batch_stats):
    state = {"params": {"w": 0}, "batch_stats": {"mean": 1}, "average": average}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = jax.tree.map(jnp.float32, state)
        checkpoints.save(1, state, {"best": {"step": 1}}, metrics(0.1))
    expected = ({"w": 2}, {"mean": batch_stats}) if average else ({"w": 0}, {"mean": 1})
    found = restore_best_variables(tmp_path)
    assert (found["params"], found["batch_stats"]) == expected


def test_without_a_whole_checkpoint_nothing_starts_anew_by_itself(opened, tmp_path):
    opened().save(1, NETWORK, {}, metrics(0.1))
    opened()
    tear(tmp_path / "checkpoints" / "1")
    # The same command again finds them set aside, and has the same answer.
    for _ in range(2):
        with pytest.raises(UserError, match=r"No checkpoint in .* could be read; they are now in"):
            opened().restore_latest(like(NETWORK))


def test_a_checkpoint_of_another_network_is_named_and_stays(opened, kept):
    opened().save(1, NETWORK, {}, metrics(0.1))
    other = {"params": {"weights": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}}
    with pytest.raises(UserError) as caught:
        opened().restore_latest(like(other))
    message = str(caught.value)
    assert "params/bias is missing there and (4,) here" in message
    assert "params/weights is (2, 3) there and (2, 4) here" in message
    assert kept() == [1]


def test_an_error_leaves_no_save_half_way(tmp_path, slow_writer, kept):
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, NETWORK, {}, metrics(0.1))
        assert kept() == []
        raise ZeroDivisionError
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_room_is_looked_for_after_the_save_before_is_complete(
    tmp_path, slow_writer, kept, monkeypatch
):
    def disk_usage(folder):
        """A disk with room for three checkpoints."""
        return SimpleNamespace(total=1, free=0 if len(list(folder.iterdir())) > 2 else 1e9)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step in (1, 2, 3, 4):  # the completion of the third removes the first
            checkpoints.save(step, NETWORK, {}, metrics(0.1))
    assert kept() == [3, 4]


def test_a_save_that_fails_in_the_background_does_not_hide_the_first_error(
    tmp_path, monkeypatch, capsys
):
    def fail(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_write_checksums", fail)
    with pytest.raises(UserError, match=r"^The loss is nan$") as raised:
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            checkpoints.save(1, NETWORK, {}, metrics(0.1))
            raise UserError("The loss is nan")
    assert raised.value.__cause__ is None
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: A checkpoint cannot be written") and "No space left" in line
    # If the failure itself is the error, it is said once.
    with pytest.raises(UserError, match="No space left"):
        with Checkpoints(tmp_path / "other") as checkpoints:
            checkpoints.save(1, NETWORK, {}, metrics(0.1))
            checkpoints.wait()
    assert not capsys.readouterr().err


def test_a_save_that_another_process_is_missing_from_is_no_trouble_of_the_disk(
    opened, monkeypatch, capsys
):
    checkpoints = opened()
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: Task 1 heartbeat timeout")

    def wait():
        raise TimeoutError("Timed out while waiting for a barrier.") from lost

    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        patch.setattr(checkpoints._manager, "wait_until_finished", wait)
        with pytest.raises(jax.errors.JaxRuntimeError, match="heartbeat"), checkpoints:
            checkpoints.wait()
    assert not capsys.readouterr().err


@pytest.mark.parametrize("seconds", [1e6, -1e6])
def test_a_clock_that_jumps_does_not_end_a_save(tmp_path, slow_writer, kept, monkeypatch, seconds):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, NETWORK, {}, metrics(0.1))
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + seconds)
        checkpoints.save(2, NETWORK, {}, metrics(0.1))
    assert kept() == [1, 2]
