"""TileLang programs, unchanged: the modules that they import, and a device that says cuda.

`tiledsl run SCRIPT.py` puts the folder `shim/` first on the path, so that `import tilelang` finds what is here, and
runs the script. Inside programs of one's own: `tiledsl.compat.install()`.
"""

from __future__ import annotations

from tiledsl.compat.install import install, installed
from tiledsl.compat.run import prepare

__all__ = ["install", "installed", "prepare"]
