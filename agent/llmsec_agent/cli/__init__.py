"""The two commands: each module registers its own, parses options, and calls what does the work."""
