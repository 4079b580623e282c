"""What rules look with: patterns, checksums, identifiers, names and addresses, and plug-ins of users."""
