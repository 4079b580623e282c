"""How stored exchanges and findings are shown: tables, conversations, JSON for other systems. Prints nothing by itself."""
