"""The device that a site computes on, and deterministic computation on it."""

import os

import torch

from client.site.config import Device, Site
from common.errors import SiteFailed


def device_of(site: Site) -> torch.device:
    """Return the device that the site computes on.

    Raises:
        SiteFailed: its file requires a GPU, and there is none.
    """
    available = torch.cuda.is_available()
    if site.device is Device.CUDA and not available:
        raise SiteFailed(f"site {site.name}, device: found no GPU, expected one ('cuda')")
    return torch.device("cpu" if site.device is Device.CPU or not available else "cuda")


def configure_torch(site: Site) -> None:
    """Set the threads and the algorithms, so that equal orders have bit-identical results."""
    torch.set_num_threads(site.threads)
    if device_of(site).type == "cuda":
        make_deterministic()


def make_deterministic() -> None:
    """Make a GPU give bit-identical results for equal work."""
    # Without it cuBLAS may sum in another order from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not `warn_only`: both fused attentions (without a mask, and with that of packed rows) then
    # only warn, and sum a backward pass in a random order (torch 2.13).
    torch.use_deterministic_algorithms(True)
