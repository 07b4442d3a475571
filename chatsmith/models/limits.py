"""What this machine can do at most, measured: the ceilings that throughput is compared with."""

import time

import torch
from torch import nn

from chatsmith.cpu.products import fast_products


def measure_peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product here: the ceiling that `step/mfu` refers to."""
    size = 8192 if device.type == "cuda" else 1024
    layer = nn.Linear(size, size, bias=False, device=device, dtype=dtype).requires_grad_(False)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        with fast_products(layer, size):
            product = layer(matrix)
        float(product[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def measure_bandwidth(device: torch.device) -> float:
    """Bytes per second of memory here: a large copy or a large read, whichever moves more."""
    size = min(4 << 30, torch.cuda.mem_get_info(device)[0] // 4) if device.type == "cuda" else 256 << 20
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        float(target.copy_(source)[0])  # waits for the device
        copied = time.perf_counter()
        float(source.sum())
        read = time.perf_counter()
        best = max(best, 2 * source.nbytes / (copied - started), source.nbytes / (read - copied))
    return best
