"""How likely a text is a prompt injection: normalised, turned into features, and weighed by a small model that is in this folder."""
