"""Peak throughput of known GPUs, for MFU. A GPU or a number format that is not here has no MFU rather than a wrong one.

Figures are the makers' for dense matrices (never the "with sparsity" ones), in FLOP/s. Names are matched whole, so
that a slice of a GPU (MIG) or a variant with other clocks is not taken for the GPU it resembles.
"""

from __future__ import annotations

_TERA = 1e12

_A100 = {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}
_H100_SXM = {"bf16": 989.4, "fp16": 989.4, "tf32": 494.7, "fp32": 66.9}
_H100_PCIE = {"bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51.2}

PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H200": _H100_SXM,
    "NVIDIA L4": {"bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3},
    "NVIDIA L40S": {"bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6},
    "NVIDIA A10": {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2},
    "Tesla T4": {"fp16": 65, "fp32": 8.1},
    "Tesla V100-SXM2-16GB": {"fp16": 125, "fp32": 15.7},
    "Tesla V100-SXM2-32GB": {"fp16": 125, "fp32": 15.7},
}


def number_format(precision: str, float32_matmul: str = "highest") -> str | None:
    """What matmuls run in: bf16, fp16, tf32 or fp32, from Lightning's `precision`; None where it is none of them.

    `float32_matmul` is ``torch.get_float32_matmul_precision()``: anything but "highest" lets float32 run as tf32.
    """
    precision = str(precision)
    if precision.startswith("bf16"):
        return "bf16"
    if precision.startswith("16"):
        return "fp16"
    if precision.startswith("32"):
        return "fp32" if float32_matmul == "highest" else "tf32"
    return None


def peak_flops(device_name: str, fmt: str | None) -> float | None:
    """FLOP/s of one device, or None where it is not known."""
    tera = PEAKS.get(device_name, {}).get(fmt or "")
    return tera * _TERA if tera is not None else None
