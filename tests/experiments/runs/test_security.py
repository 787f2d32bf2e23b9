"""Nothing that is read is executed: not by the words of the program, and not when it runs."""

import ast
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from experiments import data
from experiments.core.errors import UserError
from experiments.runs import artifacts as maps
from experiments.runs.checkpoints import Checkpoints

ROOT = Path(__file__).parents[3]
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {  # The end of a dotted name, in any module.
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "pd.read_pickle",
    "pandas.read_pickle",
    "shutil.unpack_archive",
}
METHODS = {"extractall", "read_pickle", "unpack_archive", "from_pickle"}


def executes(source):
    """The lines of a program that may run what they read, and what they call."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(node.lineno, name) for name in names if name.split(".")[0] in MODULES]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            loads = name in ("np.load", "numpy.load", "jnp.load", "jax.numpy.load")
            if (
                (isinstance(node.func, ast.Name) and name in BUILTINS)
                or name in CALLS
                or (isinstance(node.func, ast.Attribute) and node.func.attr in METHODS)
                or (loads and keywords.get("allow_pickle") != "False")
                or keywords.get("allow_pickle") == "True"
                or keywords.get("shell") == "True"
            ):
                found.append((node.lineno, name))
    return found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import numpy, cloudpickle as c",
        "from joblib import load",
        "eval(text)",
        "exec(text, {})",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "jnp.load(path, mmap_mode='r')",
        "np.savez(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader)",
        "archive.extractall(folder)",
        "shutil.unpack_archive(path)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
    ],
)
def test_the_search_finds_what_executes(line):
    assert executes(line)


def test_no_program_here_executes_what_it_reads():
    files = [path for room in ("dyn", "experiments") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 100
    found = {str(path.relative_to(ROOT)): executes(path.read_text()) for path in files}
    assert {path: lines for path, lines in found.items() if lines} == {}


WATCHED = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
_seen: list | None = None


def _hook(event, arguments):
    if _seen is not None and event in WATCHED:
        _seen.append((event, arguments))


@pytest.fixture
def watched():
    """The list of what Python is asked to unpickle or start from now on."""
    global _seen
    if not getattr(_hook, "installed", False):
        sys.addaudithook(_hook)  # It stays for good; between tests it looks at nothing.
        _hook.installed = True
    _seen = []
    yield _seen
    _seen = None


class Marks:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_watch_sees_an_unpickling(watched, tmp_path):
    pickle.loads(pickle.dumps(Marks(tmp_path / "mark"))).close()
    assert watched and (tmp_path / "mark").exists()


def test_a_checkpoint_is_read_without_executing_anything(watched, tmp_path):
    state = {"weights": jnp.arange(6.0), "rng": jax.random.key(3)}
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, state, {"seconds": 0.0}, {"accuracy": 1.0, "loss": 0.0})
    checkpoints.close()
    again = Checkpoints(tmp_path / "checkpoints")
    step, restored, _ = again.restore_latest(shapes)
    again.close()
    assert step == 1
    np.testing.assert_array_equal(restored["weights"], state["weights"])
    assert watched == []


def test_maps_with_an_object_in_them_are_refused_without_executing_it(watched, tmp_path):
    path = tmp_path / "maps.npz"
    np.savez(path, labels=np.array([Marks(tmp_path / "mark")], dtype=object))
    watched.clear()
    with pytest.raises(UserError, match=r"maps\.npz cannot be read: it is damaged"):
        maps._read_arrays(path, ["labels"])
    assert watched == [] and not (tmp_path / "mark").exists()


def test_maps_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    from experiments.data import archives

    path = tmp_path / "maps.npz"
    np.savez_compressed(path, images=np.zeros((64, 1 << 16), np.uint8))
    monkeypatch.setattr(archives, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(
        UserError, match=r"maps\.npz cannot be read: .*images\.npy would have 4,194,"
    ):
        maps._read_arrays(path, ["images"])


def test_data_sets_are_read_without_executing_anything(watched, tmp_path):
    usual = {
        "dir": str(tmp_path / "dir"),
        "variant": "",
        "validation": 0.0,
        "test": 0.2,
        "limit": 0,
    }
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(10):
            path = tmp_path / "pets" / name / f"{number}.png"
            Image.new("RGB", (6, 4), (number, 0, 0)).save(path)
    (tmp_path / "pets" / "cat" / "evil.png").write_bytes(pickle.dumps(Marks(tmp_path / "mark")))
    Image.new("RGB", (6, 4)).save(tmp_path / "pets" / "cat" / "program.eps")
    rows = "1\t1\t2\t4\n2\t4\t2\t1\n"
    for part in ("TRAIN", "TEST"):
        (tmp_path / f"Toy_{part}.tsv").write_text(rows)
    for name, source in (("folder", tmp_path / "pets"), ("ucr", tmp_path), ("digits", "")):
        found = data.load(ConfigDict({**usual, "name": name, "source": str(source)}), 0)
        for split in found.splits.values():
            assert split[0]["inputs"].size
    assert watched == [] and not (tmp_path / "mark").exists()
