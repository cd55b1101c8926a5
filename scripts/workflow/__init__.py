"""Parts of flow.py, which runs a grid as a workflow of snakemake."""
