"""How LTX-2 (19B) cuts pixels and sound into latents, from its own metadata."""

import json
from pathlib import Path

from justdubit_jax.models.tokens import Layout

CONFIG = json.loads((Path(__file__).parents[1] / "ltx-2-19b-dev.config.json").read_text())
LTX2 = Layout.from_metadata(CONFIG)
