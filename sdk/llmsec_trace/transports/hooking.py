"""One method of one object, replaced: every request passes through it, and it can be put back.

The object keeps its class and its identity, so whoever looks at it finds what was there before. A copy of it, or what is unpickled, has the
original method again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmsec_trace.recorder import Recorder


class Hook:
    """Stands in the object's own dictionary in place of `name`."""

    name = ""

    def __init__(self, owner: Any, recorder: Recorder) -> None:
        self.owner = owner
        self.recorder = recorder
        self.original: Any = getattr(owner, self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the method of the class."""
        return getattr, (self.owner, self.name)

    @classmethod
    def put(cls, owner: Any, recorder: Recorder, *, again: bool) -> bool:
        """Record what passes `owner`. One that is recorded already stays so; `again` has it recorded by this recorder from now on.

        Raises AttributeError for an object that takes no attributes.
        """
        known = vars(owner).get(cls.name)
        if isinstance(known, Hook):
            if again:
                known.recorder = recorder
            return False
        setattr(owner, cls.name, cls(owner, recorder))
        return True

    @classmethod
    def take(cls, owner: Any) -> bool:
        """Undo `put`. False where there was nothing to undo."""
        known = vars(owner).get(cls.name)
        if not isinstance(known, Hook):
            return False
        delattr(owner, cls.name)
        if getattr(owner, cls.name) != known.original:  # somebody's own, which stood there before us
            setattr(owner, cls.name, known.original)
        return True
