"""Published figures of TPU chips, and the peaks of GPUs."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of a chip.

    Attributes:
      name: as in the name of a topology.
      kinds: `device_kind` of such a device in jax.
      peak: FLOP/s of bfloat16 products.
      hbm_bytes_per_s: bandwidth of its memory.
      hbm_bytes: size of its memory.
      link_bytes_per_s: bandwidth of one link to a neighbour, one way.
      wraps_from: a slice's axis closes to a ring when it has a multiple of this many chips.
      wraps_whole: whether that holds for all axes of a slice or for none.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    hbm_bytes_per_s: float
    hbm_bytes: float
    link_bytes_per_s: float
    wraps_from: int
    wraps_whole: bool = False


# docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}. Links: 400, 1200 and 800 GB/s a chip, both ways over
# 4, 6 and 4 ports, make 50, 100 and 100 GB/s a link one way; jax-ml.github.io/scaling-book uses
# 45, 90 and 90, as here. Rings: v5e and v6e have them along sides of 16, v5p in slices made of
# whole cubes of 4x4x4. What the compiler allows itself of HBM is what it says itself.
CHIPS = {
    "v5e": Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 819e9, 15.75 * 2**30, 45e9, 16),
    "v5p": Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, 2765e9, 95.74 * 2**30, 90e9, 4, True),
    "v6e": Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 1640e9, 31.25 * 2**30, 90e9, 16),
}

# Dense bfloat16 FLOP/s by the start of a device's name; nvidia.com/data-center/{a100,h100,h200}.
_GPU_PEAKS = {"NVIDIA A100": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}


def chip_of(kind: str) -> Chip | None:
    """The figures of a device by its `device_kind` in jax; None: not known."""
    return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)


def peak_of(kind: str) -> float | None:
    """FLOP/s of dense bfloat16 products, whatever the precision of a run; None: not known."""
    if chip := chip_of(kind):
        return chip.peak
    return next((peak for name, peak in _GPU_PEAKS.items() if kind.startswith(name)), None)
