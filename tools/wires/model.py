"""Crossed wires inside the transformer, its weights and its adapters."""

from wires.fault import Fault

_BLOCK = "justdubit_jax/models/block.py"
_TRANSFORMER = "justdubit_jax/models/transformer.py"
_GOLDENS = (
    "tests/models/test_transformer.py tests/models/test_block.py tests/models/test_attention.py"
)

FAULTS = (
    Fault(
        "model.clean-and-noisy-modulation-swapped",
        _BLOCK,
        "clean * values[:, :1] + (1 - clean) * values[:, 1:]",
        "(1 - clean) * values[:, :1] + clean * values[:, 1:]",
        _GOLDENS,
    ),
    Fault(
        "model.text-length-ignored",
        _BLOCK,
        "context_len=cond.context_len, execution=execution)",
        "context_len=None, execution=execution)",
        _GOLDENS,
    ),
    Fault(
        "model.cross-attention-takes-the-self-rope",
        _BLOCK,
        "v_side, a_side = (v_cond.cross_rope, isolated[0]), (a_cond.cross_rope, isolated[1])",
        "v_side, a_side = (v_cond.cross_rope, isolated[0]), (a_cond.rope, isolated[1])",
        _GOLDENS,
        harmless="the sound has one axis, time, whose span is the same in both of its attentions",
    ),
    Fault(
        "model.isolation-lengths-swapped",
        _BLOCK,
        "(v_cond.cross_rope, isolated[0]), (a_cond.cross_rope, isolated[1])",
        "(v_cond.cross_rope, isolated[1]), (a_cond.cross_rope, isolated[0])",
        _GOLDENS,
    ),
    Fault(
        "model.isolated-queries-without-bias",
        _BLOCK,
        "bias[...].astype(out.dtype), (len(x)",
        "0 * bias[...].astype(out.dtype), (len(x)",
        _GOLDENS,
    ),
    Fault(
        "model.gate-of-the-first-token-for-all",
        _BLOCK,
        "v, a = _add(v, v_gate, to_v), _add(a, a_gate, to_a)",
        "v, a = _add(v, v_gate[:, :1], to_v), _add(a, a_gate[:, :1], to_a)",
        _GOLDENS,
    ),
    Fault(
        "model.one-modulation-for-both-directions",
        _BLOCK,
        "a2v, v2a = self.audio_to_video, self.video_to_audio",
        "a_for_v2a, a2v, v2a = a_for_a2v, self.audio_to_video, self.video_to_audio",
        _GOLDENS,
    ),
    Fault(
        "model.values-only-for-every-sample",
        "justdubit_jax/models/attention.py",
        "jnp.where(values_only[:, None, None, None], v, out)",
        "jnp.where(values_only.any(), v, out)",
        "tests/models tests/sampling/test_loop.py",
    ),
    Fault(
        "model.rule-always-other",
        _TRANSFORMER,
        'own = cross_timestep == "own"',
        "own = False",
        _GOLDENS,
    ),
    Fault(
        "model.rule-always-own",
        _TRANSFORMER,
        'own = cross_timestep == "own"',
        "own = True",
        _GOLDENS,
    ),
    Fault(
        "model.other-rule-takes-the-own-sigma",
        _TRANSFORMER,
        "return jnp.stack([other.sigma, other.sigma], 1)",
        "return jnp.stack([own.sigma, own.sigma], 1)",
        "tests/models tests/sampling/test_loop.py",
    ),
    Fault(
        "model.isolation-dropped",
        _TRANSFORMER,
        "a_cond, isolated, skip_here, execution)",
        "a_cond, (0, 0), skip_here, execution)",
        _GOLDENS,
    ),
    Fault(
        "model.skip-of-the-first-block-everywhere",
        _TRANSFORMER,
        "weights, index, skip_here = xs",
        "weights, index, skip_here = xs\n"
        "            skip_here = jax.tree.map(lambda x: x[0], skip)",
        "tests/models tests/sampling/test_loop.py",
    ),
    Fault(
        "model.dropout-key-of-the-first-block-everywhere",
        _TRANSFORMER,
        "prepare_block(block, index)\n            v, a",
        "prepare_block(block, 0 * index)\n            v, a",
        "tests/models/test_transformer.py",
    ),
    Fault(
        "model.audio-time-span-of-the-audio-alone",
        _TRANSFORMER,
        "(max(config.video.max_pos[0], config.audio.max_pos[0]),)",
        "(self.stream.max_pos[0] / 2,)",
        _GOLDENS,
    ),
    Fault(
        "model.position-is-the-start",
        _TRANSFORMER,
        "middle = (positions[..., 0] + positions[..., 1]) / 2",
        "middle = positions[..., 0]",
        _GOLDENS,
    ),
    Fault(
        "model.registers-do-not-replace-the-padding",
        "justdubit_jax/latents/text.py",
        "return connectors(gemma(ids, mask), mask)",
        "return connectors(gemma(ids, mask), jnp.ones_like(mask))",
        "tests/test_end_to_end.py",
    ),
    Fault(
        "model.gemma-without-its-mask",
        "justdubit_jax/latents/text.py",
        "return connectors(gemma(ids, mask), mask)",
        "return connectors(gemma(ids, jnp.ones_like(mask)), mask)",
        "tests/test_end_to_end.py",
    ),
    Fault(
        "model.contexts-swapped",
        "justdubit_jax/latents/text.py",
        "return list(zip(np.asarray(video), np.asarray(audio), strict=True))",
        "return list(zip(np.asarray(audio), np.asarray(video), strict=True))",
        "tests/test_end_to_end.py",
    ),
    Fault(
        "model.prompts-of-a-batch-reversed",
        "justdubit_jax/latents/text.py",
        "return list(zip(np.asarray(video), np.asarray(audio), strict=True))",
        "return list(zip(np.asarray(video)[::-1], np.asarray(audio)[::-1], strict=True))",
        "tests/latents/test_text.py",
    ),
    Fault(
        "lora.scale-left-out",
        "justdubit_jax/models/layers.py",
        "low * self.scale, self.B",
        "low, self.B",
        "tests/lora tests/training",
    ),
    Fault(
        "lora.quantized-linear-without-adapter",
        "justdubit_jax/models/layers.py",
        "            y = self.weight(x)\n",
        "            return self.weight(x)\n",
        "tests/models/test_quant.py",
    ),
    Fault(
        "lora.read-in-reversed-blocks",
        "justdubit_jax/lora/files.py",
        "for tensor in tensors.values()])",
        "for tensor in reversed(tensors.values())])",
        "tests/lora",
    ),
    Fault(
        "lora.written-in-reversed-blocks",
        "justdubit_jax/lora/files.py",
        "return leaf[layer]\n",
        "return leaf[-1 - layer]\n",
        "tests/lora",
    ),
    Fault(
        "lora.b-drawn-and-a-zero",
        "justdubit_jax/lora/adapters.py",
        'if path.endswith(".A"):',
        'if path.endswith(".B"):',
        "tests/lora",
    ),
    Fault(
        "lora.every-adapter-starts-alike",
        "justdubit_jax/lora/adapters.py",
        "leaf_key = jax.random.fold_in(key, i)",
        "leaf_key = key",
        "tests/lora",
    ),
    Fault(
        "lora.alpha-of-the-file-ignored",
        "justdubit_jax/lora/files.py",
        "rank if alpha is None else alpha",
        "rank",
        "tests/lora",
    ),
    Fault(
        "lora.every-linear-drops-the-same",
        "justdubit_jax/lora/adapters.py",
        "linear.lora.dropout_key = jax.random.fold_in(key, i)",
        "linear.lora.dropout_key = key",
        "tests/lora",
    ),
    Fault(
        "quant.scales-of-another-row",
        "justdubit_jax/models/quant.py",
        "weight = values.astype(jnp.float32) * scales\n    else:",
        "weight = values.astype(jnp.float32) * scales[..., ::-1, :]\n    else:",
        "tests/models/test_quant.py",
    ),
    Fault(
        "quant.nf4-halves-swapped",
        "justdubit_jax/models/quant.py",
        "codes = jnp.stack([values & 15, values >> 4], -1)",
        "codes = jnp.stack([values >> 4, values & 15], -1)",
        "tests/models/test_quant.py",
    ),
    Fault(
        "quant.weights-rounded-before-they-are-encoded",
        "justdubit_jax/weights/arrays.py",
        "return cls(weight.shape, True, None, rows(weight.shape), weight.scheme, places)",
        "half = jnp.bfloat16\n        return cls(weight.shape, True, half, rows(weight.shape), "
        "weight.scheme, places)",
        "tests/weights tests/models/test_quant.py",
    ),
    Fault(
        "weights.tables-in-half-precision",
        "justdubit_jax/weights/load.py",
        "return jnp.float32 if small_table else dtype",
        "return dtype",
        "tests/weights",
    ),
    Fault(
        "weights.every-block-is-the-first",
        "justdubit_jax/weights/load.py",
        "functools.partial(read, part.key(path, layer)))",
        "functools.partial(read, part.key(path, layer and 0)))",
        "tests/weights",
    ),
    Fault(
        "weights.connectors-of-the-modalities-swapped",
        "justdubit_jax/weights/keys.py",
        '(_DIT + "video_embeddings_connector.{}", "video_connector.{}"),\n'
        '        (_DIT + "audio_embeddings_connector.{}", "audio_connector.{}"),',
        '(_DIT + "video_embeddings_connector.{}", "audio_connector.{}"),\n'
        '        (_DIT + "audio_embeddings_connector.{}", "video_connector.{}"),',
        "tests/weights tests/models/test_connector.py",
    ),
    Fault(
        "weights.gates-of-the-modalities-swapped",
        "justdubit_jax/weights/keys.py",
        '"video.cross_gate_adaln.{}"),\n'
        '        (_DIT + "av_ca_v2a_gate_adaln_single.{}", "audio.cross_gate_adaln.{}")',
        '"audio.cross_gate_adaln.{}"),\n'
        '        (_DIT + "av_ca_v2a_gate_adaln_single.{}", "video.cross_gate_adaln.{}")',
        "tests/models/test_transformer.py",
    ),
)
