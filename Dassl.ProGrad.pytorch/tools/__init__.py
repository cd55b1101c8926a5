"""Scripts beside the engine."""
