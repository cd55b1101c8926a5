"""CLIP adapters (stage 1) and MERGETUNE's continued fine-tuning of each (stage 2), arXiv 2601.10497."""
