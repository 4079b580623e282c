"""Provider decoders: dialects of LLM APIs, sans-IO."""
