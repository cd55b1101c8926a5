"""ConDU: continual learning by fusing what each task changed in a pretrained CLIP (arXiv 2503.10705)."""
