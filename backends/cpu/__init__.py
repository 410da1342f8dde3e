"""Lowering of the tile stage to the loop stage, shared by all CPU printers, and their micro-kernel emitters."""
