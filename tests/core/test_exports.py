"""A package's table of contents is true: every name is there, and nothing public is left out."""

import importlib
import inspect

import pytest


@pytest.mark.parametrize("package", ["penstock.core.models", "penstock.core.engine"])
def test_the_table_of_contents_is_complete(package: str) -> None:
    module = importlib.import_module(package)
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public == set(module.__all__)
    assert module.__doc__
