"""Errors of remote filesystems as they are told, and options as they are given."""

from __future__ import annotations

import socket

import pytest

from cachekd.config import LocationConfig
from cachekd.errors import StoreError
from cachekd.store.explained import told_of
from cachekd.store.io import Location
from cachekd.store.settings import settings_of


def test_a_filesystem_that_cannot_be_connected_to_is_an_error_of_the_place() -> None:
    with socket.socket() as probe:  # nobody listens there
        probe.bind(("127.0.0.1", 0))
        url = f"ftp://bob:canary@127.0.0.1:{probe.getsockname()[1]}/there"
        with pytest.raises(StoreError, match=r"ftp://\.\.\.@127.*refused.*Try again") as told:
            Location(url)
    assert "canary" not in str(told.value)


def test_the_cause_is_told_where_the_error_only_names_the_place() -> None:
    error = FileNotFoundError("https://bob:canary@host/x?sig=hidden")
    error.__cause__ = OSError("no route to https://bob:canary@host/x?sig=hidden of key-canary")
    told = told_of("https://host/x", error, {"key": "key-canary"})
    assert told.startswith("https://host/x: no route to https://...@host/x?... of ....")


def test_credentials_of_digits_stay_text_and_other_numbers_do_not() -> None:
    given = {"secret": "12345678", "key": "007", "password": "1234", "port": "8080", "anon": "true"}
    options = settings_of(LocationConfig(storage_options=given)).options
    assert options == {**given, "port": 8080, "anon": True}


def test_an_option_that_the_filesystem_does_not_know_is_no_outage() -> None:
    error = TypeError("AioSession.__init__() got an unexpected keyword argument 'keey'")
    told = told_of("s3://there", error, {"keey": "abc-canary"})
    assert "'keey'. Check the names in --storage-options" in told and "again" not in told
