"""Who speaks in a text, by its role."""

from __future__ import annotations

from typing import Final

# Who speaks for the operator.
OPERATOR_ROLES: Final = frozenset(("system", "developer"))
# Roles whose text is somebody else's: documents, tool results. An order in it is indirect injection.
FOREIGN_ROLES: Final = frozenset(("tool", "function", "document", "ipython", "tool_result"))
# What the model itself says is not judged for injection.
OWN_ROLES: Final = frozenset(("assistant", "model", "ai", "tool_call"))
