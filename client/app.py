"""The site's edge: decode, do, encode. The only file of a site that touches Flower."""

import logging
import os
import resource
import secrets
import time
import traceback
from dataclasses import replace
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site import Site, load_site
from client.store import held
from common.errors import SiteFailed
from common.exchange import Answer, Failure, Order, Presence, Update
from common.identity import code_digest
from common.progress import News, tell

#: Folder with one site file per simulated site; a real site names its own in the node config.
SIMULATED_SITES = "FEDMSLORA_SIMULATED_SITES"

#: In a site's store: what went wrong there, a line with its reference and then the traceback.
FAILURES_FILE = "failures.log"

app = ClientApp()


@app.query()
def introduce(message: Message, context: Context) -> Message:
    """Say which site this is, which code it runs and which releases it holds."""
    site = _site(context)
    presence = Presence(site=site.name, code=code_digest(), holds=held(site.store))
    return Message(presence.to_record(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Improve the ordered adapter on this site's data."""
    return _work(message, _site(context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the ordered model on this site's test questions."""
    return _work(message, _site(context))


def _work(message: Message, site: Site) -> Message:
    # Torch comes with the first order; who only says which site this is needs none.
    from client.work import do

    started = time.monotonic()

    def report(news: News) -> None:
        tell(site.store / "progress", site.name, news)

    try:
        answer = do(Order.from_record(message.content), site, report)
    except Exception as error:  # Flower would send its text, which may name a patient's file
        return Message(_failure(site, error).to_record(), reply_to=message)
    return Message(_with_cost(answer, time.monotonic() - started).to_record(), reply_to=message)


def _with_cost(answer: Answer, seconds: float) -> Answer:
    if not isinstance(answer, Update):
        return answer
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return replace(answer, seconds=seconds, peak_memory=kibibytes * 1024)


def _failure(site: Site, error: Exception) -> Failure:
    """Keep the error's text in the site's log; let only its class and a reference leave."""
    reference, kind = secrets.token_hex(4), type(error).__name__
    text = " / ".join(str(error).splitlines())
    try:
        site.store.mkdir(parents=True, exist_ok=True)
        with (site.store / FAILURES_FILE).open("a", encoding="utf-8") as log:
            log.write(f"{reference} {kind}: {text}\n")
            log.write("".join(traceback.format_exception(error)))
    except OSError as trouble:
        # The disk is full, which is often the very error: the system's words for it are safe.
        kind = f"{kind}, and its log can't be written: {trouble.strerror}"
    return Failure(site=site.name, error=kind, reference=reference)


def _site(context: Context) -> Site:
    """The site of this node: its node config names the file, or a simulation its number.

    Raises:
        SiteFailed: without the reason, which names this site's files; its log has it.
    """
    try:
        if "site-file" in context.node_config:
            return load_site(Path(str(context.node_config["site-file"])))
        files = sorted(Path(os.environ[SIMULATED_SITES]).glob("*/site.yaml"))
        return load_site(files[int(context.node_config["partition-id"])])
    except SiteFailed as error:
        logging.getLogger(__name__).error("%s", error)
        raise SiteFailed("the site file of this node can't be used; its log says why") from None
