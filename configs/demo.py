"""The demo's training: configs/dub.py for a toy checkpoint on a CPU.

Purpose: the whole path on files that `python -m justdubit_jax.demo` makes; nothing to keep.
Cost: under a minute on 2 CPU cores.
Command:
  python -m justdubit_jax.train --config configs/demo.py --config.model.model_path=... \
    --config.model.text_encoder_path=... --config.data.preprocessed_data_root=... \
    --config.output_dir=...
"""

import runpy
from pathlib import Path

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    c = runpy.run_path(str(Path(__file__).with_name("dub.py")))["get_config"]()
    c.lora.rank = 8
    c.lora.alpha = 8
    c.optimization.steps = 60
    c.optimization.learning_rate = 5e-3  # small ranks and random weights bear more
    c.acceleration.mixed_precision_mode = "no"  # a CPU emulates bfloat16
    c.checkpoints.interval = 20
    c.validation.video_dims = (96, 64, 25)
    c.validation.inference_steps = 2
    c.validation.interval = 30
    c.output_dir = "outputs/demo/run"
    return c
