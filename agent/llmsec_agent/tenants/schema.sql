-- Tenants and their keys, for `storage.postgres`. Whoever fills these tables needs more rights than the tap, which only reads them.
CREATE TABLE IF NOT EXISTS tenants (
    id text PRIMARY KEY,
    plan text,
    rate_limit integer,            -- requests a minute
    security_config jsonb          -- content, profile, confidence_threshold, alert_threshold (docs/tenants.md)
);
CREATE TABLE IF NOT EXISTS api_keys (
    key_hash text PRIMARY KEY,     -- as `llmsec-analyze tenants fingerprint` prints it; never a key
    tenant_id text NOT NULL REFERENCES tenants (id) ON DELETE CASCADE
);
