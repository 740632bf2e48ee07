"""Doctests of the package run under the same settings as the tests."""

from tests.conftest import x64  # noqa: F401
