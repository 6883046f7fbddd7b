from __future__ import annotations

from pathlib import Path

import pytest

from serving.access.keys import Client, Keys, KeysError, add, entries, refuse_in_url, revoke
from serving.gateway.errors import ApiError
from serving.settings import QuotaSettings


def test_a_key_opens_until_it_is_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = add(file, "ann")
    keys = Keys.load(file)
    second = add(file, "bob", QuotaSettings(concurrent=2))
    assert keys.check(f"Bearer {first}") == Client("ann")
    assert keys.check(f"Bearer {second}") == Client("bob", QuotaSettings(concurrent=2))
    assert revoke(file, "ann") == 1
    assert keys.check(f"Bearer {first}") is None
    assert keys.check(f"Bearer {second}") is not None
    assert [entry.client for entry in entries(file) if entry.revoked] == ["ann"]
    with pytest.raises(KeysError, match="no key that could be revoked"):
        revoke(file, "ann")


def test_no_file_repr_or_list_holds_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add(file, "ann")
    secret = key.split("-", 2)[2]
    keys = Keys.load(file)
    (entry,) = entries(file)
    said = f"{keys!r} {vars(keys)!r} {entry!r} {keys.check('Bearer ' + key)!r}"
    assert secret not in file.read_text() + said
    assert entry.hash not in said
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(secret) == 43  # 256 bits in base64


@pytest.mark.parametrize(
    "change",
    [
        lambda key: None,
        lambda key: key,
        lambda key: f"bearer {key}",
        lambda key: f"Bearer  {key}",
        lambda key: f"Bearer {key} ",
        lambda key: f"Bearer {key.upper()}",
        lambda key: f"Bearer {key[:-1]}",
        lambda key: f"Bearer {key[:12]}{'A' * 43}",
        lambda key: f"Bearer pl-00000000-{key[12:]}",
        lambda key: f"Basic {key}",
        lambda key: f"Bearer {key}\n",
        lambda key: "Bearer " + "é" * 43,
    ],
)
def test_nothing_but_the_key_opens(tmp_path: Path, change: object) -> None:
    key = add(tmp_path / "keys.json", "ann")
    assert callable(change)
    assert Keys.load(tmp_path / "keys.json").check(change(key)) is None


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    key = add(file, "ann")
    keys = Keys.load(file)
    file.chmod(0o640)
    with pytest.raises(KeysError, match="chmod 600"):
        Keys.load(file)
    assert keys.check(f"Bearer {key}") is None  # a running server closes as well
    file.chmod(0o600)
    assert keys.check(f"Bearer {key}") is not None


@pytest.mark.parametrize("content", ["", "[", '[{"key": 1}]', "{}"])
def test_a_broken_file_is_told(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.json"
    file.touch(0o600)
    file.write_text(content)
    with pytest.raises(KeysError, match="no file of keys"):
        Keys.load(file)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a\n", "x" * 65, "é"])
def test_names_that_go_into_logs_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeysError, match="expected 1 to 64"):
        add(tmp_path / "keys.json", name)


def test_a_key_in_the_url_is_refused_by_name(tmp_path: Path) -> None:
    key = add(tmp_path / "keys.json", "ann")
    for query in ("api_key=x", "a=1&access_token=", f"q={key}", "KEY=x", "token=1"):
        with pytest.raises(ApiError) as refused:
            refuse_in_url(query.encode())
        assert refused.value.status == 401 and key not in refused.value.message
    refuse_in_url(b"limit=3&order=asc")


def test_a_key_says_whether_its_answers_may_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    no, yes = add(file, "no"), add(file, "yes", consents=True)
    known = Keys.load(file)
    clients = [known.check(f"Bearer {key}") for key in (no, yes)]
    assert [client.consents for client in clients if client is not None] == [False, True]
