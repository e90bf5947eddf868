"""Which of its addresses a host should be reached at: not that of its own name, which may be loopback. No torch.

Where /etc/hosts says 127.0.1.1, as on Debian, or does not know the name, other hosts cannot reach what listens there.
"""

import os
import socket

import psutil


def own_address_towards(host: str) -> str | None:
    """This host's IPv4 address on the way to `host`; None if that is loopback, or `host` cannot be resolved."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith("127.") else address


def choose_gloo_interface() -> None:
    """Sets GLOO_SOCKET_IFNAME, where it is not set, to the interface on the way to MASTER_ADDR, unless loopback."""
    address = own_address_towards(os.environ["MASTER_ADDR"])
    for name, addresses in psutil.net_if_addrs().items():
        if address in (found.address for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
