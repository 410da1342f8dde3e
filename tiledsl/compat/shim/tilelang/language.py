"""`tilelang.language`: every name is looked up in `tiledsl.compat.language`."""

from tiledsl.compat import language as _language

__all__ = _language.names()
__path__: list[str] = []  # programs import from its modules, `tilelang.language.kernel`: the same names


def __getattr__(name):
    if name.startswith("__") and name.endswith("__"):
        raise AttributeError(name)
    return _language.lookup(name)
