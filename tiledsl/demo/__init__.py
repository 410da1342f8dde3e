"""`tiledsl demo`: a real text through attention and a mixture of experts, on every CPU target, measured."""

from tiledsl.demo.run import arguments, main

__all__ = ["arguments", "main"]
