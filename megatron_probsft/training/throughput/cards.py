"""GPUs by name: what their data sheets promise, and the share of it that large products are assumed to get.

All peaks are dense (without 2:4 sparsity), all bandwidths in one direction; data sheets give NVLink's and
PCIe's in both. The network is what the vendor's own servers have for each GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from megatron_probsft.runtime.errors import UserError
from megatron_probsft.runtime.suggestions import nearest

CardName = Literal[
    "h100-80gb", "h100-pcie", "h200-141gb", "b200", "a100-80gb", "a100-40gb", "l40s", "rtx-4090", "rtx-5090"
]

# Dense bf16 FLOP/s of NVIDIA's data sheets, by a part of the device's name: the first that fits counts.
_BF16_PEAKS = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989.4e12, "H200 NVL": 835.5e12, "H200": 989.4e12,
    "H100 PCIe": 756e12, "H100 NVL": 835.5e12, "H100": 989.4e12, "H800": 989.4e12, "H20": 148e12,
    "A100": 311.9e12, "A800": 311.9e12, "L40S": 362.1e12, "L40": 181e12, "A40": 149.7e12, "A10G": 70e12,
    "A10": 125e12, "L4": 121e12, "RTX 4090": 165.2e12, "RTX 5090": 209.5e12,
}  # fmt: skip


def bf16_peak(device: str) -> float | None:
    """Return a device's dense bf16 FLOP/s by its name (`torch.cuda.get_device_name()`), if it is known.

    Whole words count, and neither laptops' chips nor China's "D" models, which are smaller ones.
    """
    for name, peak in _BF16_PEAKS.items():
        if re.search(rf"\b{name}\b(?! Laptop| D\b)", device):
            return peak
    return None


@dataclass(frozen=True)
class GpuCard:
    """One kind of GPU; FLOP/s and bytes per second of one GPU."""

    name: str
    device: str
    """It stands in what `torch.cuda.get_device_name()` returns."""
    memory_gib: float
    fp8: float | None
    """None: it has no FP8 units."""
    memory_bandwidth: float
    link: float
    """To the other GPUs of its node: NVLink, or PCIe."""
    network: float
    """To other nodes."""
    linear_bf16: float
    """The share of the bf16 peak that large products are assumed to reach. It is less where power limits
    the clock: an H100 SXM keeps 600 to 700 TFLOP/s in the largest products, an A100 240 to 270."""
    linear_fp8: float
    source: str

    @property
    def bf16(self) -> float:
        return _BF16_PEAKS[self.device]


_HOPPER = "https://resources.nvidia.com/en-us-hopper-architecture/nvidia-tensor-core-gpu-datasheet"
_DGX_H100 = "network: DGX H100 data sheet, 8 × 400 Gb/s"
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet.pdf"
_CARDS = [
    GpuCard("h100-80gb", "H100", 80, 1978.9e12, 3.35e12, 450e9, 50e9, 0.6, 0.48,
         f"H100 SXM: {_HOPPER}; {_DGX_H100}"),
    GpuCard("h100-pcie", "H100 PCIe", 80, 1513e12, 2.0e12, 64e9, 25e9, 0.55, 0.42,
         f"H100 PCIe, without NVLink bridges: {_HOPPER}; network assumed: 200 Gb/s"),
    GpuCard("h200-141gb", "H200", 141, 1978.9e12, 4.8e12, 450e9, 50e9, 0.6, 0.48,
         "H200 SXM: https://nvdam.widen.net/s/nb5zzzsjdf/hpc-datasheet-sc23-h200; "
         "network: DGX H200 data sheet, 8 × 400 Gb/s"),
    GpuCard("b200", "B200", 180, 4500e12, 8.0e12, 900e9, 50e9, 0.6, 0.48,
         "DGX B200 data sheet ÷ 8: https://resources.nvidia.com/en-us-dgx-systems/dgx-b200-datasheet"),
    GpuCard("a100-80gb", "A100", 80, None, 2.039e12, 300e9, 25e9, 0.75, 0.0,
         f"A100 80GB SXM: {_A100}; network: DGX A100 data sheet, 8 × 200 Gb/s"),
    GpuCard("a100-40gb", "A100", 40, None, 1.555e12, 300e9, 25e9, 0.75, 0.0,
         f"A100 40GB SXM: {_A100}; network: DGX A100 data sheet, 8 × 200 Gb/s"),
    GpuCard("l40s", "L40S", 48, 733e12, 0.864e12, 32e9, 12.5e9, 0.6, 0.5,
         "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413; network assumed: 100 Gb/s"),
    GpuCard("rtx-4090", "RTX 4090", 24, 330.3e12, 1.008e12, 32e9, 3.125e9, 0.85, 0.6,
         "Ada architecture white paper, appendix A, fp32 accumulation; network assumed: 25 Gb/s"),
    GpuCard("rtx-5090", "RTX 5090", 32, 419e12, 1.792e12, 64e9, 3.125e9, 0.85, 0.6,
         "RTX Blackwell architecture white paper, appendix A, fp32 accumulation; network assumed: 25 Gb/s"),
]  # fmt: skip
CARDS: dict[str, GpuCard] = {card.name: card for card in _CARDS}
assert [*CARDS] == [*get_args(CardName)]
ESTIMATED_IN_BF16 = "--gpu estimates a run in bfloat16: not one with --no-bf16"


def card_of(name: str) -> GpuCard:
    """Return the card of this name.

    Raises:
        UserError: there is none.
    """
    if name not in CARDS:
        near = nearest(name, CARDS)
        raise UserError(
            f"--gpu {name} is none of {', '.join(CARDS)}{f'; did you mean {near}?' if near else ''}"
        )
    return CARDS[name]
