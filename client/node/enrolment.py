"""Check whether the coordinator has enrolled this site's key, without changing its state."""

from typing import Final

import httpx
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.site.config import Federation
from client.site.finding import Finding, Level, ok, problem
from client.site.keys import load_key
from common.network.proxies import changed_environment, environment_to

#: flwr 1.42 looks up the key, then refuses so short an interval, and only then would mark the
#: node as online: so a known key and an unknown one get two different refusals.
_NO_INTERVAL: Final = 0.0


def check_enrolment(federation: Federation) -> Finding:
    """Check whether the coordinator has enrolled this site.

    Raises:
        SiteFailed: the key can't be used.
    """
    key = load_key(federation.key)
    public = key.public_key()
    request = ActivateNodeRequest(
        public_key=public_key_to_bytes(public), heartbeat_interval=_NO_INTERVAL
    )
    sign = NodeAuthHttpInterceptor(key, public)
    ca = federation.ca.read_bytes()
    try:
        # Flower's client reads the environment when it is made.
        with changed_environment(environment_to(federation.address)):
            made = FleetHttpClient.from_server_address(federation.address, False, ca, [sign])
        with made as client:
            client.ActivateNode(request)
    except httpx.HTTPStatusError as error:
        return _refusal_finding(federation, error.response)
    except httpx.TransportError as error:
        return Finding(
            "key", Level.AWAY, f"the coordinator did not answer ({type(error).__name__})"
        )
    return ok("key", "the coordinator knows this site's key")


def _refusal_finding(federation: Federation, answer: httpx.Response) -> Finding:
    refusal = FlowerError.from_json(answer.text)
    match None if refusal is None else refusal.code:
        case ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return ok("key", "the coordinator knows this site's key")
        case ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return Finding(
                "key",
                Level.UNKNOWN,
                f"the coordinator does not know this site's key: send it {federation.key}.pub, "
                "for `fedmslora coordinator enroll`",
            )
        case _ if answer.status_code == 401:
            return problem(
                "key", "the coordinator refuses what this key signs: is this machine's clock right?"
            )
        case _ if answer.status_code >= 500:
            return Finding(
                "key", Level.AWAY, f"the coordinator's SuperLink is down ({answer.status_code})"
            )
        case _:
            return problem(
                "key",
                f"{federation.address}: found the HTTP status {answer.status_code}, expected a "
                "coordinator's answer: is it a coordinator?",
            )
