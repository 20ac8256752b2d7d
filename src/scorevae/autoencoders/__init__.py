"""Trained systems: images to latents and back."""
