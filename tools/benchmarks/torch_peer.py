# /// script
# requires-python = ">=3.11,<3.13"
# dependencies = ["ltx-core==1.0.0", "peft>=0.17", "torch>=2.7", "transformers<5"]
# ///
# pyright: reportMissingImports=false
"""The torch trainer's step, timed on request: the other side of `tools/benchmark.py step --peer`.

ltx-core's LTXModel, PEFT adapters, gradient checkpointing, AdamW and the gradient clip, put
together as JustDubit's trainer does (packages/ltx-trainer of its repository). Weights and latents
are random. It runs in an interpreter of its own, since ltx-core pins an older transformers than
ours: the lines above say what that needs, and `uv sync --script` of
this file makes one.

It talks in JSON lines. In: the sizes, then one line for every step. Out: what it is once it is
ready, then the seconds of each step; or {"error": ...} and exit code 2.
"""

import json
import math
import os
import resource
import sys
import time
from typing import Any

try:
    import torch
    from ltx_core.model.transformer.modality import Modality
    from ltx_core.model.transformer.model_configurator import LTXModelConfigurator
    from peft import LoraConfig, get_peft_model
    from peft import __version__ as peft_version
except ImportError as error:
    reason = f"it has no {error.name}: see torch_peer.py" if error.name else str(error)
    print(json.dumps({"error": reason}), flush=True)
    sys.exit(2)


def main() -> None:
    size = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    torch.set_num_threads(size["threads"])
    device = torch.device(size["device"])
    model = make_model(size, device)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-4)
    batch = make_batch(size, device)

    def step() -> float:
        """What the trainer does between two batches, until the loss is on the host."""
        synchronize(device)
        start = time.perf_counter()
        loss = compute_loss(model, batch, size)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        synchronize(device)
        if not math.isfinite(value):
            raise FloatingPointError(f"loss is {value}")
        return time.perf_counter() - start

    say(
        torch=torch.__version__,
        peft=peft_version,
        python=sys.version.split()[0],
        threads=torch.get_num_threads(),
        adapter_parameters=sum(p.numel() for p in trainable),
        base_parameters=sum(p.numel() for p in model.parameters() if not p.requires_grad),
    )
    for _ in sys.stdin:
        say(seconds=step(), peak_bytes=peak_bytes(device))


def make_model(size: dict[str, Any], device: torch.device) -> torch.nn.Module:
    """The model with its adapters: base weights in the run's type, adapters in float32."""
    with torch.device("meta"):
        base = LTXModelConfigurator.from_config(size["config"])
    base = base.to(dtype=getattr(torch, size["dtype"])).to_empty(device=device)
    with torch.no_grad():
        for name, p in base.named_parameters():
            if name.endswith("norm.weight"):
                p.fill_(1)
            else:
                bound = math.sqrt(3 / p.shape[-1])
                p.uniform_(-bound, bound)
    base.requires_grad_(False)
    lora = LoraConfig(
        r=size["rank"],
        lora_alpha=size["rank"],
        target_modules=size["targets"],
        lora_dropout=0.0,
        init_lora_weights=True,
    )
    model = get_peft_model(base, lora)
    model.get_base_model().set_gradient_checkpointing(size["remat"])
    return model.train()


def make_batch(size: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Clean latents as tokens, positions and contexts, in the run's type; a face mask."""
    dtype = getattr(torch, size["dtype"])
    section = size["config"]["transformer"]
    b, channels, width = size["batch"], section["in_channels"], section["caption_channels"]
    batch: dict[str, Any] = {}
    for name in ("video", "audio"):
        half, text = size[f"{name}_tokens"] // 2, size["text_tokens"]
        positions = torch.tensor(size["positions"][name], dtype=dtype, device=device)
        batch[name] = {
            "target": torch.randn(b, half, channels, dtype=dtype, device=device),
            "reference": torch.randn(b, half, channels, dtype=dtype, device=device),
            "positions": positions[None].repeat(b, 1, 1, 1),
            "context": torch.randn(b, text, width, dtype=dtype, device=device),
        }
    batch["face"] = torch.rand(b, size["video_tokens"] // 2, device=device) > 0.5
    return batch


def compute_loss(
    model: torch.nn.Module, batch: dict[str, Any], size: dict[str, Any]
) -> torch.Tensor:
    """Noise both targets with one sigma, run the model, and weigh the face."""
    target = batch["video"]["target"]
    shift = 0.95 + (2.05 - 0.95) / (4096 - 1024) * (target.shape[1] - 1024)
    sigma = torch.sigmoid(torch.randn(len(target), device=target.device) + shift)
    noises, modalities = [], []
    for name in ("video", "audio"):
        stream = batch[name]
        target = stream["target"]
        noise = torch.randn_like(target)
        level = sigma.to(target.dtype).view(-1, 1, 1)
        noisy = (1 - level) * target + level * noise
        clean = torch.zeros(stream["reference"].shape[:2], device=target.device)
        timesteps = torch.cat([clean, sigma[:, None].expand(target.shape[:2])], 1)
        noises.append(noise)
        modalities.append(
            Modality(
                latent=torch.cat([stream["reference"], noisy], 1),
                sigma=sigma,
                timesteps=timesteps,
                positions=stream["positions"],
                context=stream["context"],
            )
        )
    half = size["dtype"] == "bfloat16"
    with torch.autocast(target.device.type, torch.bfloat16, enabled=half):
        velocities = model(video=modalities[0], audio=modalities[1], perturbations=None)
    errors = [
        (velocity[:, batch[name]["reference"].shape[1] :].float() - noise + batch[name]["target"])
        .pow(2)
        .mean(-1)
        for name, velocity, noise in zip(("video", "audio"), velocities, noises, strict=True)
    ]
    weight = torch.where(batch["face"], 1.0, 0.1)
    return (errors[0] * weight).sum() / weight.sum() + errors[1].mean()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(device: torch.device) -> int:
    """Peak of the device's allocations, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def say(**values: Any) -> None:
    _OUT.write(json.dumps(values) + "\n")
    _OUT.flush()


if __name__ == "__main__":
    # Whatever libraries print must not come between the lines of JSON.
    _OUT = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    main()
