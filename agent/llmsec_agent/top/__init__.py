"""`llmsec-tap top`: who asks which model what, as it happens, in a terminal."""
