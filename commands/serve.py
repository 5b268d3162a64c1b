"""`fedmslora serve`: answer questions about pictures over HTTP, as OpenAI's API does."""

# typer 0.20 leaves a type of click's open in its overloads; not ours to fix.
# pyright: reportUnknownMemberType=false

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from commands.bank_ask import TOY, TOYS, ask_settings, embedded_base
from commands.options import BankFolder as Folder
from commands.options import (
    BaseModelFolder,
    Json,
    ModelPrecision,
    SiteFile,
    Tower,
    VisionTower,
    print_json,
)
from common.printable import counted

if TYPE_CHECKING:
    from common.bank.bank import Bank
    from serving.run_server import Address

_TOKEN_VARIABLE: Final = "FEDMSLORA_TOKEN"
_FEWEST: Final = 16
#: More than any header of a request.
_MOST_BYTES: Final = 4096
#: Longest that an answer may be allowed to take: a day.
_LONGEST_S: Final = 86_400.0


def serve(
    bank: Folder,
    base_model: BaseModelFolder = None,
    vision_weights: VisionTower = Tower.OPENAI,
    precision: ModelPrecision = None,
    site: SiteFile = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; by default this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port; 0 takes any that is free.")
    ] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"The token that clients need, in a file; by default from {_TOKEN_VARIABLE}, "
            "or a new one, which is printed.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A certificate (PEM), for HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The certificate's key (PEM).")
    ] = None,
    plain_http: Annotated[
        bool,
        typer.Option(
            "--plain-http", help="Allow HTTP beyond this machine, as behind a proxy with TLS."
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads of the model; by default torch's choice."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=256, help="Most questions that are answered together.")
    ] = 16,
    max_body_mib: Annotated[
        int, typer.Option(min=1, max=1024, help="Most of a request, in MiB.")
    ] = 64,
    max_megapixels: Annotated[
        int, typer.Option(min=1, max=89, help="Most pixels of a picture, in millions.")
    ] = 30,
    max_question: Annotated[
        int, typer.Option(min=1, max=100_000, help="Most characters of a question.")
    ] = 2000,
    max_requests: Annotated[
        int, typer.Option(min=1, max=10_000, help="Most requests at one time.")
    ] = 64,
    timeout_s: Annotated[
        float, typer.Option(min=1, help="Longest that an answer may take, in seconds.")
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Serve a bank over HTTP: OpenAI's chat completions with pictures, and a page to try it.

    One model name for each stage, and fedmslora/router, which chooses by the picture (docs/use.md).

    Example: fedmslora serve runs/demo/bank --port 8000
    """
    from client.orders.ask import ResidentBank
    from common.errors import StateError
    from common.network.address import without_brackets
    from common.network.ports import NeededPort, check_free
    from serving.chat import ChatBounds
    from serving.decoder import DecodeBounds
    from serving.http_app import AnswerServer, ServerBounds
    from serving.run_server import Address, run

    host = without_brackets(host)
    address = Address(host=host, port=port, certificate=tls_cert, key=tls_key)
    _check(address, plain_http)
    if not timeout_s <= _LONGEST_S:
        # The option's range lets nan pass.
        raise StateError(f"--timeout-s: found {timeout_s:g}, expected 1 to {_LONGEST_S:g} seconds")
    token, given = _token(token_file)
    # Before the model is loaded, which may take minutes.
    check_free([NeededPort(host, port, "--host or --port")])
    opened = _verified(bank)
    resident = ResidentBank(
        opened,
        base_model or embedded_base(opened),
        ask_settings(vision_weights, precision, site),
    )
    bounds = ServerBounds(
        body_bytes=max_body_mib * 2**20,
        requests=max_requests,
        answer_s=timeout_s,
        chat=ChatBounds(question_chars=max_question),
        decode=DecodeBounds(pixels=max_megapixels * 1_000_000),
    )
    server = AnswerServer(resident, token, bounds, batch_size, threads)

    def announce(listening: int) -> None:
        url = f"{address.scheme}://{_in_url(host)}:{listening}"
        if opened.base_model.name in TOYS:
            typer.echo(TOY.format(opened.base_model.name), err=True)
        _show(url, opened, None if given else token, as_json)

    run(server, address, announce)


def _verified(folder: Path) -> "Bank":
    """Open the bank, and refuse now what would fail only some stages' questions, later.

    Raises:
        Refusal: a file was changed, or its method is not installed here.
    """
    from client.orders.answer_by_method import has_method, plan_to_answer
    from common.bank.bank import verify_bank
    from common.bank.check import Expected

    bank = verify_bank(folder, Expected())
    if has_method(bank):
        plan_to_answer(bank, bank.releases[-1])
    return bank


def _show(url: str, bank: "Bank", new_token: str | None, as_json: bool) -> None:
    """Print what is served and where, and the token if it was made just now."""
    if as_json:
        shown = {} if new_token is None else {"token": new_token}
        print_json({"url": url, "bank": str(bank.folder), "head": bank.head, **shown})
        return
    stages = counted(len(bank.releases), "stage")
    typer.echo(f"serving   {bank.folder}, {stages}, head {bank.head[:16]}")
    typer.echo(f"page      {url}/" + ("" if new_token is None else f"#token={new_token}"))
    typer.echo(f"API       {url}/v1, with 'Authorization: Bearer TOKEN'")
    if new_token is not None:
        typer.echo(f"token     {new_token}")


def _check(address: "Address", plain_http: bool) -> None:
    """Check that no picture crosses a network unencrypted by mistake.

    Raises:
        StateError: it would, a file of TLS is missing, or the host is none.
    """
    from common.errors import StateError
    from common.network.address import bind_fault, is_loopback

    if (fault := bind_fault(address.host)) is not None:
        raise StateError(f"--host: {fault}")
    files = (("--tls-cert", address.certificate), ("--tls-key", address.key))
    for option, file in files:
        if file is None and any(other is not None for _, other in files):
            raise StateError(f"{option}: found none, expected a certificate and its key")
        if file is not None and not file.is_file():
            raise StateError(f"{option}: found no file {file}, expected one in PEM")
    if address.certificate is not None and address.key is not None:
        _check_pair(address.certificate, address.key)
    if not is_loopback(address.host) and address.certificate is None and not plain_http:
        raise StateError(
            f"--host: found {address.host}, which other machines reach, without TLS; expected "
            "--tls-cert and --tls-key, or --plain-http behind a proxy that has TLS"
        )


def _check_pair(certificate: Path, key: Path) -> None:
    """Check that TLS can use them.

    Raises:
        StateError: it can't.
    """
    import ssl

    from common.errors import StateError

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key fails, too: a server has nobody to ask for its password.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:
        # A file that may not be read is none of ssl's errors, and has no name.
        said = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        reason = said or "no PEM, or an encrypted key"
        raise StateError(
            f"--tls-cert, --tls-key: found {certificate} and {key}, which TLS can't use "
            f"({reason}); expected a certificate and its key, both in PEM, the key not encrypted"
        ) from None


def _token(file: Path | None) -> tuple[str, bool]:
    """Return the token, and whether it was given.

    Raises:
        StateError: it can't be read, or is too short to be secret.
    """
    from common.documents.bounded import read_text, why_unread
    from common.errors import StateError

    # Taken away: the processes that decode strangers' pictures get what is left.
    variable = os.environ.pop(_TOKEN_VARIABLE, None)
    if file is None and variable is None:
        return secrets.token_urlsafe(32), False
    source = _TOKEN_VARIABLE if file is None else str(file)
    try:
        token = (variable or "") if file is None else read_text(file, _MOST_BYTES)
    except UnicodeDecodeError:
        raise StateError(f"{source}: found no text, expected a token") from None
    except (OSError, ValueError) as error:
        raise StateError(f"{source}: can't be read as a token ({why_unread(error)})") from None
    token = token.strip()
    if len(token) < _FEWEST or not token.isascii() or any(letter.isspace() for letter in token):
        raise StateError(
            f"{source}: found a token of {len(token)} characters, expected at least {_FEWEST} "
            "ASCII letters, digits or signs"
        )
    return token, True


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
