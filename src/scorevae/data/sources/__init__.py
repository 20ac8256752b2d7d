"""Where images come from, and how they become a prepared data set."""
