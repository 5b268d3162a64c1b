"""Where a site computes, and that it computes the same to the last bit each time."""

import os

import torch

from client.site.config import Device, Site
from common.errors import SiteFailed


def device_of(site: Site) -> torch.device:
    """Where the site computes.

    Raises:
        SiteFailed: its file asks for a GPU, and there is none.
    """
    there = torch.cuda.is_available()
    if site.device is Device.CUDA and not there:
        raise SiteFailed(f"site {site.name}, device: found no GPU, expected one ('cuda')")
    return torch.device("cpu" if site.device is Device.CPU or not there else "cuda")


def settle(site: Site) -> None:
    """Equal orders have equal answers: what decides the last bits is set, no seed among it."""
    torch.set_num_threads(site.threads)
    if device_of(site).type == "cuda":
        repeat_to_the_bit()


def repeat_to_the_bit() -> None:
    """From now on a GPU gives the same bits for the same work."""
    # Without it cuBLAS may choose another way of summing from run to run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Not `warn_only`: both fused attentions (of plain rows, and of packed ones with their
    # mask) then only warn, and add up a backward pass in an order of chance (torch 2.13).
    torch.use_deterministic_algorithms(True)
