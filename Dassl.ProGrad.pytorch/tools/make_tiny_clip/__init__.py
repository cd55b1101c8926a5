"""How the built-in CLIP was made: its pretraining images, its training, and the choice of its tasks."""
