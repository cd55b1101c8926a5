"""What is trained on CLIP: prompts, adapters, heads, students."""
