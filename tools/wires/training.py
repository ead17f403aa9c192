"""Crossed wires between a sample on disk and the adapters' next values."""

from wires.fault import Fault

_OBJECTIVE = "justdubit_jax/training/objective.py"
_STEP = "justdubit_jax/training/step.py"
_OPTIMIZER = "justdubit_jax/training/optimizer.py"
_SAMPLES = "justdubit_jax/data/samples.py"
_GOLDEN = "tests/training/test_objective.py"
_FILES = "tests/data tests/test_end_to_end.py"

FAULTS = (
    Fault(
        "objective.reference-after-the-target",
        _OBJECTIVE,
        "jnp.concatenate([stream.reference, noisy], 1)",
        "jnp.concatenate([noisy, stream.reference], 1)",
        _GOLDEN,
    ),
    Fault(
        "objective.reference-of-the-target",
        _OBJECTIVE,
        "jnp.concatenate([stream.reference, noisy], 1)",
        "jnp.concatenate([0 * stream.reference, noisy], 1)",
        _GOLDEN,
    ),
    Fault(
        "objective.velocity-reversed",
        _OBJECTIVE,
        "(noise - stream.target))",
        "(stream.target - noise))",
        _GOLDEN,
    ),
    Fault(
        "objective.noise-and-target-mixed-the-other-way",
        _OBJECTIVE,
        "(1 - level) * target + level * noise",
        "level * target + (1 - level) * noise",
        _GOLDEN,
    ),
    Fault(
        "objective.loss-on-the-reference-side",
        _OBJECTIVE,
        "velocity[:, count:].astype",
        "velocity[:, : velocity.shape[1] - count].astype",
        _GOLDEN,
    ),
    Fault(
        "objective.first-frame-carries-a-loss",
        _OBJECTIVE,
        "(jnp.arange(video_error.shape[1])[None] >= first[:, None])",
        "(jnp.arange(video_error.shape[1])[None] >= 0 * first[:, None])",
        _GOLDEN,
    ),
    Fault(
        "objective.first-frame-is-noised",
        _OBJECTIVE,
        "video = noised(batch.video, draws.video_noise, draws.sigma, first, self.dtype)",
        "video = noised(batch.video, draws.video_noise, draws.sigma, none, self.dtype)",
        _GOLDEN,
    ),
    Fault(
        "objective.first-frame-of-the-sound-is-clean",
        _OBJECTIVE,
        "audio = noised(batch.audio, draws.audio_noise, draws.sigma, none, self.dtype)",
        "audio = noised(batch.audio, draws.audio_noise, draws.sigma, first, self.dtype)",
        _GOLDEN,
    ),
    Fault(
        "objective.isolation-inverted",
        _OBJECTIVE,
        "references if self.isolate else (0, 0)",
        "(0, 0) if self.isolate else references",
        _GOLDEN,
    ),
    Fault(
        "objective.rule-not-handed-on",
        _OBJECTIVE,
        "cross_timestep=self.cross_timestep,",
        'cross_timestep="own",',
        _GOLDEN,
    ),
    Fault(
        "objective.dropout-not-handed-on",
        _OBJECTIVE,
        "prepare_block=prepare_block,\n        )",
        "prepare_block=None,\n        )",
        _GOLDEN,
    ),
    Fault(
        "objective.face-and-background-swapped",
        _OBJECTIVE,
        "face, background = self.mask_loss_weight, self.background_loss_weight",
        "background, face = self.mask_loss_weight, self.background_loss_weight",
        _GOLDEN,
    ),
    Fault(
        "objective.mask-ignored",
        _OBJECTIVE,
        "weight = weight * self.mask_loss.weights(face_mask)",
        "weight = weight * jnp.ones_like(face_mask)",
        _GOLDEN,
    ),
    Fault(
        "objective.audio-loss-left-out-of-the-sum",
        _OBJECTIVE,
        '{"loss": video + audio,',
        '{"loss": video + 0 * audio,',
        _GOLDEN,
    ),
    Fault(
        "objective.audio-noise-is-the-videos",
        _OBJECTIVE,
        "audio_noise=jax.random.normal(audio_key,",
        "audio_noise=jax.random.normal(video_key,",
        _GOLDEN,
    ),
    Fault(
        "objective.sigma-and-noise-from-one-key",
        _OBJECTIVE,
        "sigma=self.sampling.draw(sigma_key, size, tokens)",
        "sigma=self.sampling.draw(video_key, size, tokens)",
        _GOLDEN,
    ),
    Fault(
        "objective.shift-by-all-tokens",
        _OBJECTIVE,
        "size, tokens, _ = batch.video.target.shape",
        "size, tokens, _ = batch.video.target.shape\n"
        "        tokens += batch.video.reference.shape[1]",
        _GOLDEN,
    ),
    Fault(
        "objective.std-ignored",
        _OBJECTIVE,
        "jax.random.normal(key, (batch,)) * self.std",
        "jax.random.normal(key, (batch,))",
        _GOLDEN,
    ),
    Fault(
        "objective.text-length-not-handed-on",
        _OBJECTIVE,
        "context_len=stream.context_len,",
        "context_len=None,",
        _GOLDEN,
    ),
    Fault(
        "step.seed-ignored",
        _STEP,
        "jax.random.key(config.seed)",
        "jax.random.key(0)",
        "tests/training/test_step.py",
    ),
    Fault(
        "step.every-step-draws-the-same",
        _STEP,
        "jax.random.fold_in(jax.random.key(config.seed), state.step)",
        "jax.random.key(config.seed)",
        "tests/training/test_step.py",
    ),
    Fault(
        "step.micro-batches-draw-the-same",
        _STEP,
        "jax.random.fold_in(key, index)",
        "jax.random.fold_in(key, 0 * index)",
        "tests/training/test_step.py",
    ),
    Fault(
        "step.micro-batches-summed",
        _STEP,
        "lambda x: x / batches.parts",
        "lambda x: x / 1",
        "tests/training/test_step.py",
    ),
    Fault(
        "step.mean-of-the-old-adapters",
        _STEP,
        "ema(state.mean, adapters, config.ema_decay)",
        "ema(state.mean, state.adapters, config.ema_decay)",
        "tests/runs/test_state.py tests/training/test_step.py",
    ),
    Fault(
        "step.infinite-steps-are-applied",
        _STEP,
        "jnp.where(finite, new, old)",
        "jnp.where(True, new, old)",
        "tests/runs/test_metrics.py tests/training/test_step.py",
    ),
    Fault(
        "optimizer.groups-ignored",
        _OPTIMIZER,
        "next((r for pattern, r in groups if re.search(pattern, name)), default)",
        "default",
        "tests/training/test_optimizer.py",
    ),
    Fault(
        "optimizer.last-group-wins",
        _OPTIMIZER,
        "next((r for pattern, r in groups if",
        "next((r for pattern, r in reversed(groups) if",
        "tests/training/test_optimizer.py",
    ),
    Fault(
        "optimizer.rates-before-the-decay",
        _OPTIMIZER,
        "        optax.add_decayed_weights(adamw.weight_decay),\n"
        "        scale_by_rates(base_rates(names, config.learning_rate, config.groups), "
        "config.schedule),\n",
        "        scale_by_rates(base_rates(names, config.learning_rate, config.groups), "
        "config.schedule),\n"
        "        optax.add_decayed_weights(adamw.weight_decay),\n",
        "tests/training/test_optimizer.py",
    ),
    Fault(
        "optimizer.moments-swapped",
        _OPTIMIZER,
        "limit, moments = config.max_grad_norm, (adamw.b1, adamw.b2, adamw.eps)",
        "limit, moments = config.max_grad_norm, (adamw.b2, adamw.b1, adamw.eps)",
        "tests/training/test_optimizer.py",
    ),
    Fault(
        "optimizer.names-are-the-paths",
        "justdubit_jax/training/prepare.py",
        "names = {path: PEFT.keys_of(path, leaf.shape) for path, leaf in "
        "abstract.adapters.items()}",
        "names = {path: [path] * len(PEFT.keys_of(path, leaf.shape)) for path, leaf in "
        "abstract.adapters.items()}",
        "tests/training/test_prepare.py",
    ),
    Fault(
        "optimizer.warm-up-ignored",
        "justdubit_jax/training/schedules.py",
        "if self.warmup_steps:",
        "if False:",
        "tests/training/test_schedules.py",
    ),
    Fault(
        "data.reference-and-target-swapped",
        _SAMPLES,
        'clips = [arrays[role]["latents"] for role in ("reference_latents", "latents")]',
        'clips = [arrays[role]["latents"] for role in ("latents", "reference_latents")]',
        _FILES,
    ),
    Fault(
        "data.reference-sound-and-sound-swapped",
        _SAMPLES,
        'for role in ("reference_audio_latents", "audio_latents")]',
        'for role in ("audio_latents", "reference_audio_latents")]',
        _FILES,
    ),
    Fault(
        "data.contexts-swapped",
        _SAMPLES,
        'contexts["audio_context"],\n        ),\n        face_mask',
        'contexts["video_context"],\n        ),\n        face_mask',
        _FILES,
    ),
    Fault(
        "data.mask-transposed",
        _SAMPLES,
        'arrays["masks"]["masks"].reshape(-1)',
        'arrays["masks"]["masks"].swapaxes(1, 2).reshape(-1)',
        _FILES,
    ),
    Fault(
        "data.frame-rate-ignored",
        _SAMPLES,
        'fps = float(metadata.get("fps", 0))',
        'fps = 25.0 * bool(metadata.get("fps", 0))',
        _FILES,
    ),
    Fault(
        "data.positions-of-the-reference-go-on",
        _SAMPLES,
        "joined: Any = np.concatenate(positions, 1)",
        "joined: Any = np.concatenate([positions[0], positions[1] + positions[0].max()], 1)",
        _FILES,
    ),
    Fault(
        "data.every-host-reads-all",
        "justdubit_jax/data/batches.py",
        ".repeat(_EPOCHS)[host::hosts]",
        ".repeat(_EPOCHS)[0::hosts]",
        "tests/data tests/devices/test_processes.py",
    ),
    Fault(
        "data.never-shuffled",
        "justdubit_jax/data/batches.py",
        ".shuffle(seed=seed + i)",
        "",
        "tests/data",
    ),
)
