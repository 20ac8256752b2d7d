"""What the systems and their files are called."""

# in the order of rows and columns; the first is the one that the others are compared with
TITLES = {
    "scorevae": "ScoreVAE",
    "vae": "VAE",
    "scorevae_plus": "ScoreVAE+",
    "diffusion_decoder": "Diffusion decoder",
}

ENCODER = "encoder.safetensors"
BASELINE_FILE = "vae.safetensors"
CORRECTOR = "variants/corrector.safetensors"
DIFFUSION_DECODER = "variants/diffusion_decoder.safetensors"
