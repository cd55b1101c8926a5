"""What only a GPU can show, as one table: bash tests/gpu.sh. Each check takes the device, and runs on a CPU too."""
