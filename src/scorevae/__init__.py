"""ScoreVAE: auto-encoding with a diffusion prior and a time-dependent encoder."""
