"""What a site refuses to carry out, and what it says where something is missing."""

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from client.methods import lora_recipe, mslora_cr
from client.model.device import configure_torch
from client.orders import execute
from client.site import blob_store
from client.site.config import Device, Site
from client.site.failures import OrderRefused
from common.adapter import to_bytes
from common.errors import BankError, DataError, SiteFailed
from common.exchange import Reason, ReleaseRef
from tests.flow.client.orders.done import adapter_of, ignore, same, trained
from tests.flow.small_site import (
    as_in_a_new_process,
    do,
    order_of,
    plan_of,
    second_stage,
)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        (Reason.CODE, {"code": "feed"}),
        (Reason.PLAN, {"stage": 2}),
        (Reason.ROUNDS, {"round": 3}),
    ],
)
def test_an_order_beyond_the_policy_or_the_plan_is_refused_here_too(
    site: Site, reason: Reason, changes: dict[str, Any]
):
    with pytest.raises(OrderRefused) as caught:
        do(order_of(site, plan_of(site), **changes), site, ignore, None)
    assert caught.value.reason is reason


def test_another_base_model_is_refused(site: Site):
    order = order_of(site, plan_of(site, base_model={"name": "tiny", "sha256": "0" * 64}))
    with pytest.raises(OrderRefused, match="base model 'tiny' at site north: found") as caught:
        do(order, site, ignore, None)
    assert caught.value.reason is Reason.BASE_MODEL


def test_a_blob_that_is_nowhere_is_named(site: Site):
    plan = plan_of(site)
    refs = (ReleaseRef(0, "a" * 64),)
    with pytest.raises(SiteFailed, match="no blob aaaaaaaaaaaa"):
        do(order_of(site, plan, stage=1, releases=refs), site, ignore, None)
    with pytest.raises(SiteFailed, match="no blob bbbbbbbbbbbb"):
        do(replace(order_of(site, plan), plan="b" * 64), site, ignore, None)


@pytest.mark.parametrize("read", [(execute, "assignment_of"), (lora_recipe, "attach")])
def test_a_release_that_is_cut_off_before_it_is_read_is_named_and_leaves_no_trace(
    site: Site, read: tuple[ModuleType, str], monkeypatch: pytest.MonkeyPatch
):
    """Before it is summed, and after that, before it is compared with."""
    module, name = read
    plan = plan_of(site)
    first = trained(order_of(site, plan), site)
    order = second_stage(site, plan, first)
    once = trained(order, site)
    file = site.store / "blobs" / order.releases[0].sha256
    blob, begun = file.read_bytes(), getattr(module, name)

    def cut_after(*arguments: object) -> object:
        found = begun(*arguments)
        os.truncate(file, len(blob) // 2)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(module, name, cut_after)
        patch.setattr(mslora_cr, "attach", lora_recipe.attach)
        as_in_a_new_process()
        with pytest.raises(BankError, match=f"^release {file.name[:12]}: cut off while it was"):
            trained(order, site)
    with pytest.raises(SiteFailed, match="the damaged blob is removed"):
        trained(order, site)
    blob_store.put(site.store, blob)
    assert same(trained(order, site), once)


def test_an_adapter_of_another_model_is_refused(site: Site, shared: Path):
    plan = plan_of(site)
    first = adapter_of(trained(order_of(site, plan), site))
    renamed = replace(first, pairs={f"x.{name}": pair for name, pair in first.pairs.items()})
    blob = to_bytes(renamed)
    with pytest.raises(BankError, match="the base model has none of that name"):
        do(order_of(site, plan, round=2, adapter=blob), site, ignore, None)


def test_a_task_that_the_site_has_not_is_a_data_error(site: Site, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    bare = site.model_copy(update={"data": tmp_path / "empty"})
    with pytest.raises(DataError, match="first: found nothing, expected a task's folder"):
        do(order_of(site, plan_of(site)), bare, ignore, None)


def test_a_gpu_that_is_missing_is_said(site: Site):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    bare = site.model_copy(update={"device": Device.CUDA})
    with pytest.raises(SiteFailed, match="site north, device: found no GPU"):
        do(order_of(site, plan_of(site)), bare, ignore, None)


def test_on_a_gpu_nothing_may_be_summed_in_an_order_of_chance(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    """With `warn_only` the fused attentions of CUDA go on as before, and warn."""

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threads = torch.get_num_threads()
    try:
        configure_torch(site.model_copy(update={"device": Device.CUDA}))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
