"""The places of HTTP libraries through which every request passes: one file for each library."""
