"""`llmsec-analyze`: captures, stores, texts, rules and configuration."""
