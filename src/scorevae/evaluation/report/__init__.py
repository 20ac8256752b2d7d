"""One page that shows a whole run."""
