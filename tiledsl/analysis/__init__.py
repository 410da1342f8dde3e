"""Questions about trees: bounds, effects, uniformity, symbols."""
