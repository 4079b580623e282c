"""HTTP/2 (RFC 9113) as a passive reader sees it: frames of either direction, header compression (RFC 7541), streams as exchanges.

It accepts what endpoints accept and more: a connection may be joined in its middle, and anything may be lost. Nothing raises, work is linear in the
input, and what is held is bounded and in the account.
"""
