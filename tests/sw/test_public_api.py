# SPDX-License-Identifier: Apache-2.0
import importlib
import pkgutil

import pytest
import sparsemac
import sparsemac.devices

MODULES = [
    m.name for package in (sparsemac, sparsemac.devices)
    for m in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
]


def test_every_public_name_is_there_and_documented():
    assert sorted(sparsemac.__all__) == sparsemac.__all__
    for name in sparsemac.__all__:
        assert getattr(sparsemac, name).__doc__, name
        assert name in dir(sparsemac)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'sparsemac' has no attribute 'nothing'"):
        _ = sparsemac.nothing


def test_public_names_come_from_where_the_types_say():
    for name, module in sparsemac._HOMES.items():
        home = importlib.import_module(f"sparsemac.{module}")
        assert getattr(sparsemac, name) is getattr(home, name)
        assert name in home.__all__
    assert set(sparsemac._HOMES) == set(sparsemac.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_modules_say_what_is_public(name):
    module = importlib.import_module(name)
    assert module.__doc__
    exported = getattr(module, "__all__", [])
    if not name.rpartition(".")[2].startswith("_") and not hasattr(module, "__path__"):
        assert exported, f"{name} has no __all__"
    for public in exported:
        assert hasattr(module, public), f"{name}.__all__ names {public}"
