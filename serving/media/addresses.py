"""Which addresses are the public internet's; others may be this machine's, its network's or its cloud's."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

#: What `is_global` of some Pythons lets pass: IANA's special-purpose registries, and Azure's own services.
SPECIAL = tuple(
    map(
        ip_network,
        (
            "192.0.0.0/24",
            "192.88.99.0/24",
            "168.63.129.16/32",
            "2001::/23",
            "2001:db8::/32",
            "2002::/16",
            "3fff::/20",
        ),
    )
)
UNICAST = ip_network("2000::/3")  # all of IPv6 that is given out
NAT64 = ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits


def is_public(text: str) -> bool:
    """Whether the address is the public internet's. An IPv4 address inside an IPv6 one is judged itself."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or (_translated(address) if address in NAT64 else address)
    if any(address in network for network in SPECIAL) or not address.is_global or address.is_multicast:
        return False
    return isinstance(address, IPv4Address) or address in UNICAST


def _translated(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFFFFFF)
