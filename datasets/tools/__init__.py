"""What `python -m datasets` does: check, links, make-split, import-subset."""
