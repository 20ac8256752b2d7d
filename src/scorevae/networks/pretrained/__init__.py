"""Diffusion models that others trained, read as priors."""
