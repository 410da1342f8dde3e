"""The backends, installed as `tiledsl.backends`; each is a sub-package found by entry point."""

if __name__ != "tiledsl.backends":
    raise ImportError(
        f"the folder backends/ is the package tiledsl.backends, not {__name__}; put the repository root on the path "
        "and import tiledsl.backends"
    )
