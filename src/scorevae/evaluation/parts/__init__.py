"""The analyses of the stage evaluate, one file each."""
