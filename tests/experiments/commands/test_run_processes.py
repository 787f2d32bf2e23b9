"""Commands on finished runs as processes: exit codes, exports in another program, and a GAN judged."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from finished_runs import config_with, write_finished
from small_runs import ROOT

from experiments.configs import dr_acgan
from experiments.inference.export import export
from experiments.load import load

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("standard_promotion")]

DIGITS = [str(label) for label in range(10)]
ELSEWHERE = """
import sys
import jax, numpy as np
from jax import export

folder = sys.argv[1]
model = export.deserialize(bytearray(open(f"{folder}/model.stablehlo", "rb").read()))
pictures = np.load(f"{folder}/pictures.npy")
for batch in (1, 3, 32):
    np.save(f"{folder}/{batch}.npy", model.call(pictures[:batch]))
assert model.platforms == ("cpu", "cuda", "tpu")
assert not {"flax", "dyn", "experiments"} & set(sys.modules)
"""


def run_command(name, *words):
    command = [sys.executable, "-m", f"experiments.{name}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The folder of a finished run on digits."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    with jax.numpy_dtype_promotion("standard"):
        write_finished(folder, config_with(**{"data.limit": 32}), DIGITS, (8, 8, 1))
    return folder


def test_predict_ends_with_2_if_nothing_can_be_predicted(classifier, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    out = tmp_path / "p.csv"
    code, _, err = run_command("predict", classifier, tmp_path / "notes.txt", f"--out={out}")
    assert code == 2 and err.startswith("error: None of 1 files")


def test_stablehlo_runs_in_a_program_with_jax_alone(classifier, tmp_path, rng):
    pictures = rng.integers(0, 256, (32, 8, 8, 1), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    export(load(classifier), "stablehlo", tmp_path / "model.stablehlo")
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path)]
    subprocess.run(command, check=True, timeout=180, cwd=tmp_path)
    expected = load(classifier)(pictures)
    for batch in (1, 3, 32):
        probabilities = jax.nn.softmax(np.load(tmp_path / f"{batch}.npy"))
        np.testing.assert_allclose(probabilities, expected[:batch], 1e-5, 1e-5, err_msg=str(batch))


def test_a_gan_generates_and_is_judged(classifier, tmp_path):
    config = dr_acgan.get_config("digits,smoke")
    with config.unlocked():
        settings = {"gan.widths": (8, 4, 4, 4), "gan.latent": 6, "image_size": 16}
        config.update_from_flattened_dict(settings)
    write_finished(tmp_path / "gan", config, DIGITS, (16, 16, 1))
    words = (tmp_path / "gan", "--per_class=1", f"--out={tmp_path / 'gen'}")

    code, _, err = run_command("generate", *words, f"--judge={tmp_path / 'gan'}")
    assert code == 2 and "run of a GAN" in err and not (tmp_path / "gen").exists()
    code, out, _ = run_command("generate", *words)
    assert code == 0 and "10 of 10 classes" in out
    code, out, err = run_command("generate", *words)
    assert code == 2 and out == "" and "--overwrite" in err
    code, out, _ = run_command("generate", *words, f"--judge={classifier}")
    assert code == 0 and "Inception Score" in out and "at most 10" in out
    assert "between real pictures" in out and "unreliable: n < 2 x 8 features" in out
