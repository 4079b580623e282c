"""Where records go: one file for each kind of place."""
