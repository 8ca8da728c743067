import hashlib
import io
from http.client import IncompleteRead
from typing import ClassVar

import pytest

from dpsyn.errors import UserError
from dpsyn.files import public_cache
from dpsyn.networks.weights import check_weights, local_weights

WHAT = "weights of a network"


def test_a_file_is_itself_and_an_address_is_fetched_once(tmp_path):
    file = tmp_path / "net.pt"
    file.write_bytes(b"numbers")
    assert local_weights("api.path", str(file), WHAT) == file
    address = file.as_uri()
    copy = local_weights("api.path", address, WHAT)
    assert copy.read_bytes() == b"numbers" and public_cache() in copy.parents
    file.unlink()
    assert local_weights("api.path", address, WHAT) == copy
    assert sorted(path.name for path in copy.parent.iterdir()) == ["net.pt", "net.pt.sha256"]


def test_without_network_it_says_which_file_to_put_where(tmp_path):
    with pytest.raises(UserError) as refused:
        local_weights("api.path", (tmp_path / "nowhere.pt").as_uri(), WHAT)
    said = str(refused.value)
    assert "\n" not in said and said.startswith("api.path=file://")
    place = said.split("Put the file at ")[1].split(",")[0]
    (tmp_path / "mine").write_bytes(b"1")
    with open(place, "wb") as file:
        file.write(b"by hand")
    assert local_weights("api.path", (tmp_path / "nowhere.pt").as_uri(), WHAT).read_bytes() == b"by hand"


@pytest.mark.parametrize("path", [None, "", "nowhere.pt", 5])
def test_what_is_neither_a_file_nor_an_address_is_one_line(path):
    with pytest.raises(UserError, match=r"^embedding.weights=.*: expected an existing file or an address"):
        check_weights("embedding.weights", path, WHAT)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), IncompleteRead(b"x"), TimeoutError("slow")])
def test_a_connection_that_is_lost_half_way_is_one_line(tmp_path, monkeypatch, error):
    class Answer(io.BytesIO):
        headers: ClassVar = {}

        def read(self, size=-1):
            raise error

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer())
    with pytest.raises(UserError, match="cannot be fetched"):
        local_weights("api.path", "https://example.org/net.pt", WHAT)
    assert not [path for path in public_cache().rglob("*") if path.is_file()]


def test_weights_of_another_digest_than_stated_named_or_first_fetched_are_not_loaded(tmp_path):
    digest = hashlib.sha256(b"numbers").hexdigest()
    for name in ("net.pt", f"net-{digest[:8]}.pt", "net-20240131.pt"):
        (tmp_path / name).write_bytes(b"numbers")
        address = (tmp_path / name).as_uri()
        copy = local_weights("api.path", f"{address}#sha256={digest}", WHAT)
        assert copy.read_bytes() == b"numbers" and copy.name == name
        with pytest.raises(UserError, match=r"^api.path=[^\n]*: expected weights with the digest 0000[^\n]*$"):
            local_weights("api.path", f"{address}#sha256={'0' * 64}", WHAT)
    (tmp_path / "net-0badbeef.pt").write_bytes(b"numbers")
    with pytest.raises(UserError, match="expected weights with the digest 0badbeef"):
        local_weights("api.path", (tmp_path / "net-0badbeef.pt").as_uri(), WHAT)
    copy.write_bytes(b"others")
    with pytest.raises(UserError, match="expected weights with the digest"):
        local_weights("api.path", f"{address}#sha256={digest}", WHAT)
