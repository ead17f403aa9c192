"""The folder of a run: what lies where, what is kept."""

import dataclasses
import json
from pathlib import Path

from justdubit_jax import files
from justdubit_jax.devices import processes
from justdubit_jax.errors import InputError
from justdubit_jax.lora import files as lora_files
from justdubit_jax.lora.record import LoRARecord
from justdubit_jax.runs.state import Checkpoints
from justdubit_jax.training.prepare import Training
from justdubit_jax.training.step import State


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The names in a run's output folder."""

    path: Path

    @property
    def state(self) -> Path:
        """Orbax steps, to continue from."""
        return self.path / "state"

    @property
    def checkpoints(self) -> Path:
        """LoRA files, named as the torch trainer names them."""
        return self.path / "checkpoints"

    def lora(self, step: int, mean: bool = False) -> Path:
        """checkpoints/lora_weights_step_00250.safetensors; the running mean's ends with _ema."""
        name = f"lora_weights_step_{step:05d}{'_ema' if mean else ''}.safetensors"
        return self.checkpoints / name

    @property
    def any_lora(self) -> Path:
        """The pattern of `lora`, for glob."""
        return self.checkpoints / "lora_weights_step_*.safetensors"

    def loras(self) -> list[Path]:
        """The LoRA files that are there, those of the running mean among them."""
        return list(self.checkpoints.glob(self.any_lora.name))

    @staticmethod
    def step_of(file: Path) -> int:
        """The step of a file that `lora` named."""
        return int(file.stem.removesuffix("_ema").rpartition("_")[2])

    @property
    def metrics(self) -> Path:
        """A JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """A JSON line for each step whose held-out loss was measured."""
        return self.path / "validation.jsonl"

    @property
    def best(self) -> Path:
        """Names the checkpoint of least held-out loss; see `read_best`."""
        return self.path / "best.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def sample(self, step: int, number: int) -> Path:
        """samples/step_000100_1.mp4; its contact sheet has the suffix .png."""
        return self.samples / f"step_{step:06d}_{number}.mp4"

    @property
    def any_sample(self) -> Path:
        """The pattern of `sample` and its contact sheet, for glob."""
        return self.samples / "step_*"

    @property
    def loss_picture(self) -> Path:
        return self.samples / "loss.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def wandb(self) -> Path:
        return self.path / "wandb"

    @property
    def contexts(self) -> Path:
        """The encoded prompts of the validation, which another run may use again."""
        return self.path / "contexts"

    @property
    def previous(self) -> Path:
        """Runs that `--fresh` moved aside, in folders 1, 2 and so on."""
        return self.path / "previous"

    @property
    def moved_by_fresh(self) -> tuple[Path, ...]:
        """What `--fresh` moves to `previous`."""
        folders = self.state, self.checkpoints, self.samples, self.tensorboard, self.wandb
        return *folders, self.best, self.metrics, self.validation


def claim_output(folder: RunFolder, fresh: bool) -> None:
    """Make the folder ready: leftovers of killed processes go, and with `fresh` a run moves aside.

    Raises InputError if there are LoRA files that a new run would overwrite.
    """
    if processes.is_first():
        files.remove_leftovers(folder.path)
        made = [path for path in folder.moved_by_fresh if path.exists()]
        if fresh and made:
            numbers = [int(p.name) for p in folder.previous.glob("*") if p.name.isdigit()]
            aside = folder.previous / str(max(numbers, default=0) + 1)
            aside.mkdir(parents=True)
            for path in made:
                path.rename(aside / path.name)
        elif not folder.state.exists() and folder.loras():
            raise InputError(
                f"{folder.path}: LoRA files of a run without its {folder.state.name}/; choose "
                f"another output_dir, or --fresh, which moves them to {folder.previous.name}/"
            )
    processes.wait_for_all("the output folder is ready")


def lora_record(training: Training) -> LoRARecord:
    """What the LoRA files of a run have in common."""
    run = training.run.lora
    return LoRARecord(run.rank, run.alpha, training.objective.cross_timestep)


def export_lora(training: Training, state: State, only_missing: bool = False) -> None:
    """Write the LoRA file of a step, and that of the running mean beside it."""
    run, step = training.run, int(state.step)
    record = dataclasses.replace(lora_record(training), step=step)
    for adapters, mean in ((state.adapters, False), (state.mean, True)):
        path = RunFolder(run.output_dir).lora(step, mean)
        if adapters is None or (only_missing and path.exists()):
            continue
        tensors = processes.gathered(adapters)
        if processes.is_first():
            lora_files.write_file(path, tensors, run.export_dtype, record.to_metadata())


def remove_old(folder: RunFolder, keep_last_n: int, checkpoints: Checkpoints) -> None:
    """Keep the newest complete steps and their LoRA files, and the best; below 1, keep all."""
    if keep_last_n < 1:
        return
    checkpoints.wait()
    kept = set(checkpoints.steps[-keep_last_n:])
    if (best := read_best(folder)) is not None:
        kept.add(best.step)
    checkpoints.keep_only(kept)
    if processes.is_first():
        for path in folder.loras():
            if folder.step_of(path) not in kept:
                path.unlink()


@dataclasses.dataclass(frozen=True)
class Best:
    """The checkpoint of least held-out loss."""

    step: int
    loss: float
    file: str  # the LoRA file's name


def read_best(folder: RunFolder) -> Best | None:
    """The best checkpoint so far, if one was named."""
    if not folder.best.exists():
        return None
    found = json.loads(folder.best.read_text())
    return Best(found["step"], found["loss"], found["file"])


def write_best(folder: RunFolder, best: Best) -> None:
    """Name the best checkpoint."""
    with files.replacing(folder.best) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(best)) + "\n")
