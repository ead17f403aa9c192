"""Crossed wires in what a run keeps, continues from, exports and looks at."""

from wires.fault import Fault

_HOLDOUT = "justdubit_jax/validation/holdout.py"
_FIXED = "justdubit_jax/validation/fixed_loss.py"
_WRITER = "justdubit_jax/validation/samples.py"
_STATE = "justdubit_jax/runs/state.py"
_OUTPUT = "justdubit_jax/runs/output.py"
_TRAIN = "justdubit_jax/train.py"
_SAMPLES = "tests/test_end_to_end.py tests/validation"

FAULTS = (
    Fault(
        "resume.data-from-the-start",
        _TRAIN,
        'batches.state = meta["data"]',
        'meta["data"]',
        "tests/test_train.py",
    ),
    Fault(
        "resume.moments-from-zero",
        _STATE,
        'restored["adapters"], moments["moments"], moments["step"]',
        'restored["adapters"], __import__("jax").tree.map(jax.numpy.zeros_like, '
        'moments["moments"]), moments["step"]',
        "tests/test_train.py",
    ),
    Fault(
        "resume.mean-forgotten",
        _STATE,
        'moments["step"], restored.get("mean")',
        'moments["step"], restored.get("mean") and restored["adapters"]',
        "tests/test_train.py tests/runs",
    ),
    Fault(
        "resume.oldest-step",
        _TRAIN,
        "newest = checkpoints.steps[-1]",
        "newest = checkpoints.steps[0]",
        "tests/test_train.py",
    ),
    Fault(
        "resume.samples-within-a-batch-forgotten",
        "justdubit_jax/data/batches.py",
        'taken["next_index"] * before // self._samples',
        'taken["next_index"]',
        "tests/data",
    ),
    Fault(
        "start.seed-of-the-adapters-ignored",
        "justdubit_jax/training/prepare.py",
        "adapters = start(jax.random.key(run.seed))",
        "adapters = start(jax.random.key(0))",
        "tests/training/test_prepare.py tests/training tests/test_train.py",
    ),
    Fault(
        "start.lora-file-ignored",
        "justdubit_jax/training/prepare.py",
        "adapters = sharding.place_whole(read, place.adapters)",
        "adapters = sharding.place_whole({k: 0 * x for k, x in read.items()}, place.adapters)",
        "tests/training/test_prepare.py",
    ),
    Fault(
        "train.dropout-not-handed-on",
        "justdubit_jax/training/prepare.py",
        "StepConfig(run.seed, run.lora.dropout, run.ema_decay)",
        "StepConfig(run.seed, 0.0, run.ema_decay)",
        "tests/training/test_prepare.py",
    ),
    Fault(
        "train.first-frame-never-given",
        "justdubit_jax/training/prepare.py",
        "first_frame_p=run.first_frame_p,",
        "first_frame_p=0.0,",
        "tests/training/test_prepare.py tests/training tests/test_train.py",
    ),
    Fault(
        "train.mask-loss-not-handed-on",
        "justdubit_jax/training/prepare.py",
        "mask_loss=run.mask_loss,",
        "mask_loss=None,",
        "tests/training/test_prepare.py tests/training tests/test_train.py",
    ),
    Fault(
        "train.isolation-not-handed-on",
        "justdubit_jax/training/prepare.py",
        "isolate=run.isolate,",
        "isolate=True,",
        "tests/training/test_prepare.py tests/training tests/test_train.py",
    ),
    Fault(
        "train.held-out-samples-are-trained-on",
        "justdubit_jax/validation/data.py",
        "samples, held_out = split_holdout(found.samples, holdout, run.seed)",
        "samples, held_out = found.samples, split_holdout(found.samples, holdout, run.seed)[1]",
        "tests/validation tests/test_train.py",
    ),
    Fault(
        "export.mean-in-the-place-of-the-adapters",
        _OUTPUT,
        "((state.adapters, False), (state.mean, True))",
        "((state.mean, False), (state.adapters, True))",
        "tests/runs tests/test_train.py",
    ),
    Fault(
        "export.step-before",
        _OUTPUT,
        "step = training.run, int(state.step)",
        "step = training.run, int(state.step) - 1",
        "tests/runs tests/test_train.py",
    ),
    Fault(
        "export.dtype-ignored",
        _OUTPUT,
        "run.export_dtype, record",
        '"float32", record',
        "tests/runs tests/test_train.py",
    ),
    Fault(
        "export.rule-not-said",
        _OUTPUT,
        "training.objective.cross_timestep)",
        '"own")',
        "tests/training/test_prepare.py",
    ),
    Fault(
        "holdout.noise-of-the-seed-alone",
        _FIXED,
        "zlib.crc32(files.name.encode())",
        "0 * zlib.crc32(files.name.encode())",
        "tests/validation/test_fixed_loss.py",
    ),
    Fault(
        "holdout.one-sigma-for-all",
        _FIXED,
        "jnp.full_like(draws.sigma, sigma)",
        "jnp.full_like(draws.sigma, 0.5)",
        "tests/validation/test_fixed_loss.py",
    ),
    Fault(
        "holdout.adapters-of-the-start",
        _HOLDOUT,
        "means = self._loss.mean(weights, self._groups)",
        "means = self._loss.mean(weights._replace(adapters={k: 0 * x for k, x in "
        "weights.adapters.items()}), self._groups)",
        "tests/validation/test_holdout.py",
    ),
    Fault(
        "holdout.worst-is-best",
        _HOLDOUT,
        'record["loss"] < best.loss',
        'record["loss"] > best.loss',
        _SAMPLES,
    ),
    Fault(
        "holdout.with-a-first-frame",
        _FIXED,
        "first_frame_p=0.0,",
        "first_frame_p=1.0,",
        "tests/validation/test_fixed_loss.py",
    ),
    Fault(
        "validation.isolation-of-the-training-ignored",
        _WRITER,
        "isolate=objective.isolate,",
        "isolate=False,",
        _SAMPLES,
    ),
    Fault(
        "validation.rule-of-the-training-ignored",
        _WRITER,
        "cross_timestep=objective.cross_timestep,",
        'cross_timestep="other",',
        _SAMPLES,
    ),
    Fault(
        "validation.repeats-alike",
        _WRITER,
        "seed=p.request.seed + repeat",
        "seed=p.request.seed",
        _SAMPLES,
    ),
    Fault(
        "validation.sound-of-the-reference",
        _WRITER,
        "voice = sound if self._validation.with_sound else None",
        "voice = (job.sound if job.sound is not None else sound) if "
        "self._validation.with_sound else None",
        _SAMPLES,
    ),
    Fault(
        "validation.prompt-and-negative-swapped",
        "justdubit_jax/validation/prepare.py",
        "Request(job, latents, contexts[prompt], negative, v.seed)",
        "Request(job, latents, negative or contexts[prompt], contexts[prompt], v.seed)",
        _SAMPLES,
    ),
    Fault(
        "validation.every-prompt-is-the-first",
        "justdubit_jax/validation/prepare.py",
        "contexts[prompt], negative, v.seed)",
        "contexts[v.prompts[0]], negative, v.seed)",
        "tests/validation/test_prepare.py",
    ),
    Fault(
        "validation.seed-ignored",
        "justdubit_jax/validation/prepare.py",
        "negative, v.seed)",
        "negative, 0)",
        _SAMPLES,
    ),
    Fault(
        "validation.image-ignored",
        "justdubit_jax/validation/prepare.py",
        "image = v.images[index] if v.images else None",
        "image = None",
        _SAMPLES,
    ),
    Fault(
        "validation.clips-of-the-prompts-swapped",
        "justdubit_jax/validation/prepare.py",
        "v.reference_videos[index],",
        "v.reference_videos[-1 - index],",
        "tests/validation/test_prepare.py",
    ),
    Fault(
        "cache.one-file-for-all-prompts",
        "justdubit_jax/latents/text_cache.py",
        "_hash(stamp, p)",
        "_hash(stamp, '')",
        "tests/validation",
    ),
    Fault(
        "cache.another-checkpoint-unnoticed",
        "justdubit_jax/latents/text_cache.py",
        'stamp = f"{_stamp(model_path)} {_stamp(gemma)}',
        'stamp = f"{_stamp(gemma)} {_stamp(gemma)}',
        "tests/validation/test_prepare.py",
    ),
)
