"""`llmsec-tap`: live capture. Heavy imports stand inside the functions: probes are attached before they are made."""
