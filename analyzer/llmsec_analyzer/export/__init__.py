"""Stored findings in the forms of other programs."""
