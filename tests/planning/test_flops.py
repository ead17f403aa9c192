"""The operation count, against a budget made by hand and checked with torch's FlopCounterMode."""

import pytest

from justdubit_jax.models.transformer_config import TransformerConfig
from justdubit_jax.planning.flops import TokenCounts, peak_flops, step_flops

# LTX-2 19B at 640x352x121, 25 fps: 3520 video and 121 audio tokens, as many reference ones.
REAL = TransformerConfig.from_metadata({"transformer": {"cross_attention_dim": 4096}})
COUNTS = TokenCounts(video=7040, audio=242, text=1024, video_reference=3520, audio_reference=121)
TARGETS = ("to_k", "to_q", "to_v", "to_out.0", "net.0.proj", "net.2")


def count(remat=True, rank=128, targets=TARGETS, isolated=False):
    return step_flops(REAL, COUNTS, rank=rank, targets=targets, remat=remat, isolated=isolated)


def test_the_budget_of_the_real_step():
    flops = count()
    assert flops.total == pytest.approx(808.5e12, rel=0.01)
    assert flops.model == pytest.approx(564.7e12, rel=0.01)
    assert flops.forward == pytest.approx(245.6e12, rel=0.01)
    assert flops.recompute == pytest.approx(243.8e12, rel=0.001)
    assert flops.backward == pytest.approx((183.2 + 115.3 + 20.7) * 1e12, rel=0.001)
    assert count(remat=False).total == flops.model


def test_the_adapters_share():
    assert count().forward - count(rank=0).forward == pytest.approx(48 * 216.9e9, rel=0.001)
    # Without any adapter on the feed-forwards: eight widths of in and out for each of the two.
    missing = count().forward - count(targets=TARGETS[:4]).forward
    assert missing == 48 * 2 * 128 * 2 * (5 * 4096 * 7040 + 5 * 2048 * 242)


def test_isolation_halves_the_attention_between_the_modalities():
    layer = count().forward - count(isolated=True).forward
    linears = 2 * 240.3e9 / 2
    scores = 2 * 14.0e9 * 3 / 4
    adapters = 2 * 2 * 128 * (7040 + 242) / 2 * 2 * (4096 + 2048)
    assert layer / 48 == pytest.approx(linears + scores + adapters, rel=0.01)


def test_peaks_by_name():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA H200") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA RTX A4000") is None
    assert peak_flops("cpu") is None
