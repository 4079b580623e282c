"""Prompt injection: what is hidden is decoded, texts become features, a small linear model judges them."""
