"""Addresses of servers: which ones may be asked, and the headers that come from the environment."""

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from persyn.errors import InputError

TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
CLIENT_HEADERS = {"host", "content-type", "content-length", "content-encoding", "transfer-encoding", "connection"}
"""Headers that the client sets."""


def _variables(given: Mapping[str, str]) -> Mapping[str, str]:
    for header, variable in given.items():
        if not TOKEN.fullmatch(header) or header.lower() in CLIENT_HEADERS:
            raise ValueError(f"holds {header!r}, which cannot be set here; it must be the name of another HTTP header")
        if not VARIABLE.fullmatch(variable):  # not shown: it may be the secret itself
            raise ValueError(f"holds under {header} what names no environment variable; put its value into one")
    return given


def _networks(given: Sequence[str]) -> Sequence[str]:
    for entry in given:
        network = _network(entry)
        if network is None and not (HOST.fullmatch(entry) and re.search("[A-Za-z]", entry)):
            raise ValueError(
                f"holds {entry!r}; it must be an address, a network such as 10.0.0.0/8, or the name of a host"
            )
        if network is not None and not network.prefixlen:
            raise ValueError(f"holds {entry!r}, which is every address; name the networks that are your own")
    return given


Variables = Annotated[dict[str, str], AfterValidator(_variables)]
Networks = Annotated[list[str], AfterValidator(_networks)]


def check_url(base_url: str, allow_http: Sequence[str] = ()) -> None:
    """Refuse an address that would send prompts or a key unencrypted, or that holds a password.

    Args:
        allow_http: networks (CIDR) and names of hosts that may be reached by http. A host that is named in the address
            must be named here too: what its name resolves to can change.
    """
    url = urlsplit(base_url)
    if not base_url:
        raise InputError(
            "a served teacher has no address; set speed.openai.base_url, such as http://127.0.0.1:8000/v1, or base_url "
            "below its name in speed.teachers"
        )
    if re.search(r"[,\s]", base_url.strip()):
        raise InputError(f"base_url is {base_url!r}; several addresses are a list: [http://..., http://...]")
    if url.username or url.password:
        raise InputError("base_url holds a user name or password; remove it and set api_key_env instead")
    if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and _open(url.hostname, allow_http))):
        named = f" (it names {', '.join(allow_http)})" if allow_http else ""
        raise InputError(
            f"base_url is {base_url!r}; it must be https://..., or http:// on this machine (a tunnel, say), or http:// "
            f"in a private network that allow_http beside it names{named}"
        )


def headers_from(variables: Mapping[str, str]) -> dict[str, str]:
    """The values of headers, whose variables are in `variables`.

    Raises:
        InputError: a variable is not set, or holds what no header can.
    """
    for header, variable in variables.items():
        value = os.environ.get(variable)
        if not value:
            raise InputError(f"the environment variable {variable} is not set; headers_env takes {header} from it")
        if not (value.isascii() and value.isprintable()):
            raise InputError(f"the environment variable {variable} holds a line break or no ASCII; correct it")
    return {header: os.environ[variable] for header, variable in variables.items()}


def _open(hostname: str, allow_http: Sequence[str]) -> bool:
    """Whether http may be used: on this machine, and where `allow_http` says so."""
    try:
        address = ipaddress.ip_address(hostname)
    except ValueError:
        return hostname == "localhost" or hostname in [entry.lower() for entry in allow_http]
    return address.is_loopback or any(address in network for entry in allow_http if (network := _network(entry)))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None
