"""The device that a run computes on: cuda, else mps (a Mac's GPU), else cpu."""

import platform

import torch

from .distributed import world_size

MPS = "mps has no float64, no pinned memory and no scaled gradients: sums in float64 are made on the CPU, amp is bf16"


def choose_device(use_cuda: bool) -> torch.device:
    """The GPU, where `use_cuda` (USE_CUDA of a config) lets it be taken and there is one, else the CPU.

    Several processes exchange no tensors on mps: they take the CPU.
    """
    if use_cuda and torch.cuda.is_available():
        return torch.device("cuda")
    mps = use_cuda and torch.backends.mps.is_available() and world_size() == 1
    return torch.device("mps" if mps else "cpu")


def device_name(device: torch.device) -> str:
    """A GPU's name, or "cpu (x86_64)", "mps (arm64)"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
