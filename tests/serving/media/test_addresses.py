"""What counts as the public internet: everything that could be this machine or its neighbours does not."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.media.addresses import is_public

PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)


def inside(network: str) -> st.SearchStrategy[IPv4Address]:
    return st.ip_addresses(v=4, network=network)


@pytest.mark.parametrize("text", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "2001:4860:4860::8888"])
def test_addresses_of_the_internet_are_public(text: str) -> None:
    assert is_public(text)


@pytest.mark.parametrize(
    "text",
    [
        "169.254.169.254",  # metadata of most clouds
        "168.63.129.16",  # Azure's
        "100.100.100.200",  # Alibaba's
        "192.0.0.192",  # Oracle's
        "fd00:ec2::254",  # Amazon's
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "2002:7f00:1::",  # 6to4 of 127.0.0.1
        "2002:808:808::",  # and of a public one: nobody runs relays any more
        "64:ff9b:1::1",  # NAT64 within one network
        "3fff::1",
        "4000::1",
        "localhost",
        "",
        "2130706433",
    ],
)
def test_other_addresses_are_not(text: str) -> None:
    assert not is_public(text)


@given(st.one_of([inside(network) for network in PRIVATE]))
def test_a_private_address_is_private_in_every_disguise(address: IPv4Address) -> None:
    number = int(address)
    mapped, translated = (0xFFFF << 32) + number, int(IPv6Address("64:ff9b::")) + number
    relayed = (0x2002 << 112) + (number << 80)
    assert not is_public(str(address))
    for disguise in (number, mapped, translated, relayed):
        assert not is_public(str(IPv6Address(disguise)))


@given(st.ip_addresses(v=4))
def test_a_mapped_or_translated_address_is_judged_as_the_one_inside(address: IPv4Address) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        assert is_public(str(IPv6Address(int(IPv6Address(prefix)) + int(address)))) == is_public(str(address))


@given(st.ip_addresses(v=6))
def test_of_ipv6_only_what_is_given_out_is_public(address: IPv6Address) -> None:
    given_out = address in ip_network("2000::/3") or address in ip_network("64:ff9b::/96")
    assert given_out or address.ipv4_mapped is not None or not is_public(str(address))
