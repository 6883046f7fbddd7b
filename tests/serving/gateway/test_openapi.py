from __future__ import annotations

import json

import pytest
from starlette.routing import Route

from serving.gateway.openapi import describe
from serving.settings import Settings
from tests.serving.gateways import backend, gateway


def test_every_route_is_described_and_no_other() -> None:
    app = gateway(backend())
    routes = {
        (method, route.path.replace(":path", ""))
        for route in app.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD"
    }
    paths = describe(Settings(), keyed=False)["paths"]
    described = {(m.upper(), p) for p, methods in paths.items() for m in methods if m != "parameters"}
    assert routes == described


def test_references_lead_somewhere() -> None:
    document = describe(Settings(), keyed=True)
    names = document["components"]["schemas"]
    text = json.dumps(document)
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.partition('"')[0] in names


@pytest.mark.parametrize("keyed", [False, True])
def test_401_is_described_where_keys_are_asked_for(keyed: bool) -> None:
    paths = describe(Settings(), keyed=keyed)["paths"]
    assert ("401" in paths["/v1/models"]["get"]["responses"]) is keyed
    assert "401" not in paths["/health"]["get"]["responses"]
