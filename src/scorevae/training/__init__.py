"""The training loop, and what the training stages share."""
