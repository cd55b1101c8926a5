"""How the built-in CLIP was made: its pretraining images and its training."""
