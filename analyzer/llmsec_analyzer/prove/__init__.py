"""Proof that rules do what they say: each example is found, each counter-example is not, whole and byte by byte."""
