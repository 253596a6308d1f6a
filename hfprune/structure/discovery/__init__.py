"""Model types that the table lacks: entries proposed from the structure of a layer, and proven."""
