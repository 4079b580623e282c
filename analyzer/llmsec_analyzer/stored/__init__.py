"""Questions to a store, read only: the session and its SQL, exchanges and findings by filter."""
