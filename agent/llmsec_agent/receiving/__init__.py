"""Records of applications that record themselves (the SDK), taken over a Unix socket."""
