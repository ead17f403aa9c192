import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.toy import config
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from justdubit_jax import train
from justdubit_jax.errors import InputError
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import open_checkpoint, open_gemma
from justdubit_jax.weights.load import compare, load_weights, parameters
from justdubit_jax.weights.parts import build_part

REPO = Path(__file__).parents[2]


def convert(*arguments):
    command = [sys.executable, "tools/convert_weights.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True)


def tiny(demo):
    return demo / "assets/ltx-2-tiny.safetensors"


@pytest.fixture(scope="module")
def converted(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    done = convert("--checkpoint", tiny(demo), "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def changed(demo, tmp_path, change, config=None) -> Path:
    tensors = load_file(tiny(demo))
    with safe_open(tiny(demo), framework="numpy") as file:
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, tmp_path / "x.safetensors", metadata if config is None else config)
    return tmp_path / "x.safetensors"


def test_every_part_equals_the_file(demo):
    source = open_checkpoint(tiny(demo))
    tensors = load_file(tiny(demo))
    for part in keys.PARTS.values():
        model = build_part(part, source.config, source.shapes)
        model = load_weights(source, part, model, jnp.float32)
        for path, variable in parameters(model).items():
            value = np.asarray(variable.get_value())
            blocks = enumerate(value) if part.is_stacked(path) else [(None, value)]
            for layer, block in blocks:
                np.testing.assert_array_equal(block, tensors[part.key(path, layer)])


def test_dtypes_are_the_runs_but_for_the_small_tables(demo):
    source = open_checkpoint(tiny(demo))
    model = build_part(keys.TRANSFORMER, source.config, source.shapes)
    model = load_weights(source, keys.TRANSFORMER, model, jnp.bfloat16)
    for path, variable in parameters(model).items():
        want = jnp.float32 if path.endswith("scale_shift_table") else jnp.bfloat16
        assert variable.get_value().dtype == want, path


def test_a_converted_folder_is_the_file(demo, converted):
    for part in keys.PARTS.values():
        models = []
        for path in (tiny(demo), converted):
            source = open_checkpoint(path)
            model = build_part(part, source.config, source.shapes)
            models.append(parameters(load_weights(source, part, model, jnp.float32)))
        for path, variable in models[0].items():
            np.testing.assert_array_equal(variable.get_value(), models[1][path].get_value())


def test_training_takes_a_converted_folder(demo, converted, tmp_path):
    flags = ("--config.optimization.steps=1", f"--config.model.model_path={converted}")
    train.main(config(demo, tmp_path, *flags))
    first = json.loads((demo / "run/metrics.jsonl").read_text().splitlines()[0])
    again = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-6)  # another process compiled it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("vocoder.conv_pre.bias"), "1 missing (vocoder.conv_pre.bias)"),
        (lambda t: t.update({"vocoder.extra": np.zeros(1)}), "1 unexpected (vocoder.extra)"),
        (lambda t: t.update({"vocoder.conv_pre.bias": np.zeros(3)}), "conv_pre.bias [3], expected"),
    ],
)
def test_mismatches_are_named(demo, tmp_path, change, message):
    source = open_checkpoint(changed(demo, tmp_path, change))
    model = build_part(keys.VOCODER, source.config, source.shapes)
    with pytest.raises(InputError) as raised:
        load_weights(source, keys.VOCODER, model, jnp.float32)
    assert message in str(raised.value)


def test_all_mismatches_are_gathered(demo, tmp_path):
    def change(tensors):
        for name in ("conv_pre.bias", "conv_post.bias"):
            tensors.pop(f"vocoder.{name}")
        tensors["vocoder.a"] = tensors["vocoder.b"] = np.zeros(1)

    source = open_checkpoint(changed(demo, tmp_path, change))
    model = build_part(keys.VOCODER, source.config, source.shapes)
    with pytest.raises(InputError, match=r"2 missing.*; 2 unexpected"):
        load_weights(source, keys.VOCODER, model, jnp.float32)


def test_tensors_of_no_part_are_an_error(demo, tmp_path):
    path = changed(demo, tmp_path, lambda t: t.update({"lm_head.weight": np.zeros(2)}))
    with pytest.raises(InputError, match=r"1 tensors of no known part \(lm_head.weight\)"):
        open_checkpoint(path)


def test_files_that_are_no_checkpoint(demo, tmp_path):
    with pytest.raises(InputError, match="no `config`"):
        open_checkpoint(changed(demo, tmp_path, lambda t: None, config={}))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(InputError, match="not a readable safetensors"):
        open_checkpoint(tmp_path / "text.safetensors")
    with pytest.raises(InputError, match=r"checkpoint.json is missing"):
        open_checkpoint(tmp_path)


def test_a_cut_off_file_is_an_error(demo, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny(demo).read_bytes()[:-1000])
    with pytest.raises(InputError, match="not a readable safetensors"):
        open_checkpoint(path)


def test_gemma_folders(demo, tmp_path):
    source = open_gemma(demo / "assets/gemma")
    model = build_part(keys.GEMMA, source.config, source.shapes)
    assert not compare(keys.GEMMA, model, source.shapes)
    shutil.copytree(demo / "assets/gemma", tmp_path / "g")
    tensors = load_file(tmp_path / "g/model.safetensors")
    names = sorted(tensors)
    (tmp_path / "g/model.safetensors").unlink()
    for i, part in enumerate((names[:20], names[20:])):
        save_file({n: tensors[n] for n in part}, tmp_path / f"g/model-{i}.safetensors")
    sharded = open_gemma(tmp_path / "g")
    assert sharded.shapes == source.shapes
    save_file({"lm_head.weight": np.zeros(2)}, tmp_path / "g/model-9.safetensors")
    with pytest.raises(InputError, match="not of Gemma 3"):
        open_gemma(tmp_path / "g")


def test_check_only_writes_nothing_and_says_what_is_wrong(demo, tmp_path):
    done = convert("--checkpoint", tiny(demo), "--check-only")
    assert done.returncode == 0 and "transformer" in done.stdout
    path = changed(demo, tmp_path, lambda t: t.pop("vocoder.conv_pre.bias"))
    done = convert("--checkpoint", path, "--check-only")
    assert done.returncode == 2 and "vocoder.conv_pre.bias" in done.stdout
    assert done.stderr.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_manifest_is_checked_without_tensors(demo, tmp_path):
    source = open_checkpoint(tiny(demo))
    tensors = {key: ["BF16", list(shape)] for key, shape in source.shapes.items()}
    (tmp_path / "a.manifest.json").write_text(json.dumps({"tensors": tensors}))
    (tmp_path / "a.config.json").write_text(json.dumps(source.config))
    done = convert("--manifest", tmp_path / "a.manifest.json")
    assert done.returncode == 0, done.stderr
    assert "used by no module: 3" in done.stdout
    tensors.popitem()
    (tmp_path / "a.manifest.json").write_text(json.dumps({"tensors": tensors}))
    assert convert("--manifest", tmp_path / "a.manifest.json").returncode == 2


def test_stacks_are_filled_where_they_belong(demo):
    """A sharded stack is born sharded and never moves."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    source = open_checkpoint(tiny(demo))
    model = build_part(keys.TRANSFORMER, source.config, source.shapes)

    def place(shape, *, stacked, whole_rows=False):
        return spec if stacked and shape[1] % 8 == 0 else whole

    loaded = load_weights(source, keys.TRANSFORMER, model, jnp.float32, place)
    for path, variable in parameters(loaded).items():
        want = place(variable.shape, stacked=path.startswith("blocks."))
        assert variable.get_value().sharding == want
