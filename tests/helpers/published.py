"""The published run's config, for tests that read no file of it."""

from helpers.commands import REPO
from ml_collections import ConfigDict

from justdubit_jax import cli


def published(*flags: str) -> ConfigDict:
    """configs/dub.py with a model path that exists; a flag is "KEY=VALUE"."""
    chosen = (f"model.model_path={REPO / 'configs'}", *flags)
    arguments = (f"--config.{flag}" for flag in chosen)
    return cli.parse_config(["train", f"--config={REPO / 'configs/dub.py'}", *arguments])
