"""Which interface leads out, and what its address is."""

from __future__ import annotations

from pathlib import Path

import pytest

from omfs.errors import ConfigError
from omfs.kernel import interfaces
from omfs.kernel.interfaces import address_of, chosen_interfaces, default_interface

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
NETWORK = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
HALF = "tun0\t00000000\t00000000\t0003\t0\t0\t0\t00000080\t0\t0\t0\n"
DOWN = "eth9\t00000000\t010200C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n"


def default(name: str, metric: int) -> str:
    return f"{name}\t00000000\t010200C0\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("routes", "found"),
    [
        ("", ""), (HEAD, ""), (HEAD + NETWORK, ""), (HEAD + HALF + DOWN, ""),
        (HEAD + NETWORK + default("eth0", 0), "eth0"),
        (HEAD + default("wlan0", 600) + default("eth1", 100), "eth1"),
    ],
    ids=["nothing", "head", "network", "no default", "default", "two"],
)  # fmt: skip
def test_the_default_route(routes: str, found: str) -> None:
    assert default_interface(routes) == found


def test_named_or_that_of_the_default_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "ROUTES", tmp_path / "route")
    assert chosen_interfaces(("eth7", "eth8")) == ("eth7", "eth8")
    with pytest.raises(ConfigError, match="route: No such file or directory; name the interface"):
        chosen_interfaces(())
    (tmp_path / "route").write_text(HEAD + NETWORK)
    with pytest.raises(ConfigError, match=r"there is no default route.*-i eth0"):
        chosen_interfaces(())
    (tmp_path / "route").write_text(HEAD + default("eth3", 0))
    assert chosen_interfaces(()) == ("eth3",)


def test_addresses() -> None:
    assert address_of("lo") == "127.0.0.1"


@pytest.mark.parametrize("name", ["", "a-name-that-is-too-long", "nosuch0"])
def test_what_is_no_interface(name: str) -> None:
    with pytest.raises(ConfigError, match="ip -brief address shows them"):
        address_of(name)
