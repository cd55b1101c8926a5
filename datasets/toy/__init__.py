"""The built-in toy world: a deterministic renderer and thirteen small data sets in CoOp's layout on disk."""
