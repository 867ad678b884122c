"""`longspan-env`: versions, hardware and the backends that run here, as an issue report wants them."""

from __future__ import annotations

import os

from longspan.records.environment import PACKAGES, hardware, versions
from longspan_kernels.launch.launcher import triton_runs_on

SHOWN_VARIABLES = ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")


def environment_text() -> str:
    """One `name: value` a line; nothing in it names a person, a host or a folder."""
    import torch

    found, machine = versions(), hardware()
    lines = [f"{name}: {found[name] or 'not installed'}" for name in ("python", "longspan", *PACKAGES, "cuda", "platform")]
    lines.append(f"cpu: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB")
    for index, (name, size) in enumerate(zip(machine["gpus"], machine["gpu_memory_gib"], strict=True)):
        major, minor = torch.cuda.get_device_capability(index)
        lines.append(f"gpu {index}: {name}, {size} GiB, compute capability {major}.{minor}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    why_not = triton_runs_on(device)
    lines.append(f"backend triton: {'runs on ' + device.type if why_not is None else why_not}")
    lines.append("backend blocked, dense: run anywhere")
    lines.append(f"backend flash: flash-attn-4 {versions('flash-attn-4')['flash-attn-4'] or 'is not installed'}")
    lines += [f"{name}={os.environ[name]}" for name in SHOWN_VARIABLES if name in os.environ]
    return "\n".join(lines)


def main() -> None:
    """Prints it."""
    print(environment_text())


if __name__ == "__main__":
    main()
