"""Read by Python at its start: child processes of `tiledsl run` and `tiledsl pytest` find the shim, and pretend the
device too.

A sitecustomize that this one hides is run as well.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _hidden():
    here = os.path.dirname(os.path.abspath(__file__))
    others = [p for p in sys.path if os.path.abspath(p or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_hidden()

from tiledsl.compat.install import install  # noqa: E402

install()
if os.environ.get("TILEDSL_PRETEND"):
    from tiledsl.compat.startup import activate

    activate()
