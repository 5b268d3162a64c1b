"""Flower's ClientApp process with the site's own app: code from the coordinator never runs.

A coordinator sends its app (a FAB) with every run, and Flower's `flwr-clientapp` would unpack
and import it. SuperExec finds that program on its PATH, so a site puts a program of the same
name there, which runs this module: Flower's process with its steps "unpack" and "load" replaced.
These steps are private to Flower, so only the tested version is accepted.

A process starts for every message, so its imports are part of every round's time. It imports no
more than it needs: Flower's own program also imports the SuperNode with its databases.
"""
# The replaced functions are Flower's own, and it leaves their types open.
# pyright: reportUnknownMemberType=false

import argparse
import logging
from collections.abc import Callable
from typing import NoReturn, Protocol

from flwr.app import Context, Message
from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime import run_clientapp as process

from client.node.processes import FLOWER, check_flower
from common.errors import SiteFailed
from common.identity import ROOT


class App(Protocol):
    """What Flower's process calls: a ClientApp."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Reply to a message."""
        ...


class Withheld(Exception):
    """Replaces an exception whose text stays at the site; it carries only the class's name."""


def main() -> None:
    """Run Flower's ClientApp process with `client.app`."""
    check_flower()
    use_own_app(_installed)
    run()


def use_own_app(load: Callable[[], App]) -> None:
    """Have Flower's process run the app that `load` returns, whatever FAB it receives.

    Raises:
        SiteFailed: Flower's process has other steps than expected.
    """
    guarded = _guarded(load)

    def find_own(*_: object, **__: object) -> Callable[..., App]:
        return lambda *_: guarded

    replaced: dict[str, Callable[..., object]] = {
        "install_from_fab": _leave_packed,
        "get_project_dir": lambda *_: ROOT,
        "install_app_dependencies": _install_nothing,
        "get_load_client_app_fn": find_own,
    }
    for name, own in replaced.items():
        if not hasattr(process, name):
            raise SiteFailed(f"flwr {FLOWER}: found no step {name!r} in its ClientApp process")
        setattr(process, name, own)


def run() -> None:
    """Do what the program `flwr-clientapp` of flwr 1.42 does with its arguments."""
    parser = argparse.ArgumentParser(description="Run a Flower ClientApp")
    parser.add_argument("--runtime-api-address", required=True)
    add_args_flwr_app_common(parser)
    given = parser.parse_args()
    process.run_clientapp(
        runtime_api_address=given.runtime_api_address,
        token=try_obtain_flwr_app_token(given),
        insecure=given.insecure,
        certificates=validate_and_resolve_root_certificates(
            given.root_certificates, given.insecure
        ),
        parent_pid=given.parent_pid,
        runtime_dependency_install=given.runtime_dependency_install,
    )


def _guarded(load: Callable[[], App]) -> App:
    """Return the app with every exception replaced by one that has only its class's name."""

    def answer(message: Message, context: Context) -> Message:
        try:
            return load()(message=message, context=context)
        except Exception as error:
            logging.getLogger(__name__).exception("The message failed; its text stays here.")
            kind = type(error).__name__
        # Outside the handler, so that the first exception is not even its context.
        raise Withheld(kind)

    return answer


def _installed() -> App:
    from client.app import app

    return app


def _leave_packed(*_: object, **__: object) -> None:
    """Do not unpack the coordinator's app."""


def _install_nothing(*_: object, **__: object) -> NoReturn:
    raise SiteFailed("found a request to install packages, expected none")
