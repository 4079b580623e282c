"""A web console over a store: pages for people, made on the server, with nothing from elsewhere."""
