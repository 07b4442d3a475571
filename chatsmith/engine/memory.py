"""How much memory is left for keys and values."""

import os
from pathlib import Path

import torch

SHARE = 0.9  # of what is free; the rest is for the activations of a step


def free_bytes(device: torch.device, held: int) -> int:
    """Memory that the engine may have in all, of which it holds so many bytes already: a share of these and of what is
    free on the GPU or reserved by torch without use; on a CPU of what Linux calls available, elsewhere half of what is
    built in."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE * (free + unused + held))
    if (meminfo := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(SHARE * (1024 * int(lines["MemAvailable"].split()[0]) + held))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
