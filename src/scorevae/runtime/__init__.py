"""What surrounds a computation and changes no number: files, state, signals, tracking."""
