"""The configuration: one file, the environment and flags, read once into frozen types (schema.py). docs/configuration.md has every key."""

from llmsec_agent.config.load import Loaded, Note, load_all, load_config, read_config, whose_of
from llmsec_agent.config.schema import Config
from llmsec_agent.config.secret import Secret

__all__ = ["Config", "Loaded", "Note", "Secret", "load_all", "load_config", "read_config", "whose_of"]
