"""Arrays made where they belong: slices of files, quantized or not, and random ones."""

import contextlib
import functools
import math
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.golden import golden_checkpoint
from helpers.transformer import inputs, run

from justdubit_jax.devices import sharding
from justdubit_jax.models import quant
from justdubit_jax.weights import keys
from justdubit_jax.weights.checkpoint import OrbaxCheckpoint, SafetensorsCheckpoint
from justdubit_jax.weights.load import expected, load_weights, parameters, random_weights
from justdubit_jax.weights.parts import build_part

CHECKPOINT = golden_checkpoint("transformer_19b")
MODEL = build_part(keys.TRANSFORMER, CHECKPOINT.config, CHECKPOINT.shapes)
SCHEMES = (None, *quant.SCHEMES)


@pytest.fixture(autouse=True)
def small_arrays_are_sharded(monkeypatch):
    monkeypatch.setattr(sharding, "_SMALLEST_SHARDED", 2)


@pytest.fixture
def pieces(monkeypatch):
    """Sizes of the pieces that are read, by checkpoint key."""
    sizes = defaultdict(list)
    plain = SafetensorsCheckpoint.reader

    @contextlib.contextmanager
    def counting(self):
        with plain(self) as read:

            def counted(key, index):
                piece = read(key, index)
                sizes[key].append(piece.size)
                return piece

            yield counted

    monkeypatch.setattr(SafetensorsCheckpoint, "reader", counting)
    return sizes


def place(data, fsdp):
    return functools.partial(sharding.weight, sharding.make_mesh(data, fsdp))


def lie_as_said(weights, where):
    """Whether every array lies where `where` says."""
    for path, variable in weights.items():
        stacked, rows = path.startswith("blocks."), path.endswith((".values", ".scales"))
        want = where(variable.shape, stacked=stacked, whole_rows=rows)
        assert variable.get_value().sharding == want, path


def loaded(shardings=None, scheme=None, source=CHECKPOINT):
    model = load_weights(source, keys.TRANSFORMER, MODEL, jnp.float32, shardings, scheme)
    return parameters(model)


def equal(got, want):
    assert got.keys() == want.keys()
    for path, variable in want.items():
        assert got[path].dtype == variable.dtype
        np.testing.assert_array_equal(got[path][...], variable[...])


@pytest.mark.parametrize(("axes", "scheme"), [((8, 1), None), ((2, 4), None), ((2, 4), "nf4")])
def test_every_number_of_a_file_is_read_once(pieces, axes, scheme):
    got = loaded(place(*axes), scheme)
    for key, shape in expected(keys.TRANSFORMER, MODEL).items():
        assert sum(pieces[key]) == math.prod(shape), key
    to_q = keys.TRANSFORMER.key("blocks.video.attn1.to_q.weight", 0)
    assert len(pieces[to_q]) == axes[1]
    lie_as_said(got, place(*axes))
    equal(got, loaded(None, scheme))


def test_loading_copies_the_abstract_model():
    first = loaded()
    loaded(None, "nf4")
    load_weights(CHECKPOINT, keys.TRANSFORMER, MODEL, jnp.bfloat16)
    for path, variable in parameters(MODEL).items():
        assert isinstance(variable.get_value(), jax.ShapeDtypeStruct)
        assert first[path].dtype == jnp.float32


@pytest.mark.parametrize("scheme", quant.SCHEMES)
def test_stored_is_the_encoded_weight(scheme):
    plain = loaded()
    got = loaded(None, scheme)
    encode = jax.jit(quant.encode, static_argnums=1)
    for path, variable in plain.items():
        if f"{path}.values" in got:
            values, scales = encode(variable[...], scheme)
            np.testing.assert_array_equal(got[f"{path}.values"][...], values)
            np.testing.assert_array_equal(got[f"{path}.scales"][...], scales)


@pytest.mark.parametrize("scheme", ["nf4"])
def test_a_converted_checkpoint_is_encoded_like_the_file(tmp_path, scheme):
    with ocp.StandardCheckpointer() as checkpointer:
        tree = {path: variable.get_value() for path, variable in loaded().items()}
        checkpointer.save(tmp_path / "transformer", tree)
    converted = OrbaxCheckpoint(tmp_path, CHECKPOINT.config, CHECKPOINT.shapes)
    equal(loaded(place(2, 4), scheme, converted), loaded(None, scheme))


@pytest.mark.deep
@pytest.mark.parametrize("scheme", ["nf4"])
def test_random_weights_run_and_do_not_depend_on_the_devices(scheme):
    def drawn(shardings, dtype=jnp.float32):
        key = jax.random.key(0)
        return random_weights(keys.TRANSFORMER, MODEL, key, dtype, shardings, scheme)

    model = drawn(None)
    values = parameters(drawn(place(2, 4)))
    lie_as_said(values, place(2, 4))
    equal(values, parameters(model))
    for velocity in run(model, *inputs(), cross_timestep="own"):
        assert 0.01 < jnp.abs(velocity).mean() < 100
    half = parameters(drawn(None, jnp.bfloat16))
    for path, variable in half.items():
        if path.endswith("norm.weight"):
            assert variable.dtype == jnp.bfloat16 and (variable[...] == 1).all()
        elif path.endswith(".bias"):
            assert (variable[...] == 0).all()
        elif path.endswith("scale_shift_table"):
            assert variable.dtype == jnp.float32
    layers = half["blocks.video.ff.net.0.proj.weight" + (".values" if scheme else "")][...]
    assert (layers[0] != layers[1]).any()
