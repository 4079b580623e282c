"""Texts of our own for training: orders hidden in documents, the same documents without, honest orders, and texts about attacks.

Written from the lists of phrases.yaml by a seeded draw, so the same file gives the same rows. They teach how things are put
together (who is addressed, what is quoted, what stands out of its surroundings); single phrases return often, so they are one
source among the others and weigh as one.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import yaml

SOURCE = "training/synthetic.py"
# What programs send is another source: its phrases are few and short, and must not outvote the rest of ours.
PROGRAMS = "training/synthetic.py, programs"
_SLOT = re.compile(r"\{(\w+)\}")
_LISTS = {"goal": "goals", "topic2": "topic"}
COUNTS = {
    "direct": 500, "indirect": 1300, "errand": 250,
    "prompts": 900, "documents": 1300, "mentions": 700, "honest": 250, "mails": 700, "limits": 700, "personas": 250,
    "harness": 700, "results": 80, "tool_texts": 16,
}  # fmt: skip


class Writer:
    def __init__(self, seed: int = 11) -> None:
        self.lists: dict[str, list[str]] = yaml.safe_load((Path(__file__).parent / "phrases.yaml").read_text(encoding="utf-8"))
        self.draw = random.Random(seed)  # noqa: S311 - texts, not keys

    def pick(self, name: str) -> str:
        return str(self.draw.choice(self.lists[name])).replace("\\n", "\n")

    def fill(self, text: str, **given: str) -> str:
        """All slots of a text filled, those of what fills them too."""

        def value(found: re.Match[str]) -> str:
            name = found[1]
            if name in given:
                return given[name]
            if name == "Goal":
                goal = self.fill(self.pick("goals"), **given)
                return goal[0].upper() + goal[1:]
            if name == "number":
                return str(self.draw.randint(1000, 99999))
            if name in ("lower", "host"):
                return self.pick("name" if name == "lower" else "company").lower().split()[0]
            if name in ("a", "a2", "b"):
                return self.fill(self.pick("plain"), **given)
            return self.fill(self.pick(_LISTS.get(name, name)), **given)

        return _SLOT.sub(value, text.replace("{{", "\x01").replace("}}", "\x02")).replace("\x01", "{").replace("\x02", "}")

    def order(self) -> str:
        text = self.fill(self.pick("orders"))
        if self.draw.random() < 0.15:  # the bare wish, with nothing said of earlier orders
            text = self.fill("{Goal}.")
        return text.upper() if self.draw.random() < 0.05 else text

    def document(self, order: str) -> str:
        return self.fill(self.pick("carriers"), x=order).strip()

    def mail(self) -> str:
        lines = " ".join(self.fill(self.pick("mail_lines")) for _ in range(self.draw.randint(1, 4)))
        return self.fill(self.pick("mail_heads")) + lines + self.fill(self.pick("mail_ends"))

    def limited(self) -> str:
        limits = [self.fill(limit) for limit in self.draw.sample(self.lists["limits"], self.draw.randint(1, 4))]
        return " ".join((self.fill(self.pick("tasks")), *limits))

    def quote(self) -> str:
        left, right = self.draw.choice(['""', "“”", "''", "``"])
        return left + self.order().replace("\n", " ").rstrip(".") + right

    def mention(self) -> str:
        bare, bare2 = self.order().replace("\n", " "), self.order().replace("\n", " ")
        return self.fill(self.pick("mentions"), quote=self.quote(), quote2=self.quote(), bare=bare, bare2=bare2)


def rows(seed: int = 11) -> list[dict[str, Any]]:
    writer = Writer(seed)
    draw = writer.draw
    out: list[dict[str, Any]] = []

    def add(text: str, label: int, category: str, role: str = "user", source: str = SOURCE) -> None:
        out.append(
            {"id": f"synthetic:{len(out)}", "text": text, "label": label, "category": category, "role": role, "lang": "en",
             "source": source, "license": "project", "set": "synthetic"}
        )  # fmt: skip

    for _ in range(COUNTS["direct"]):
        text = writer.fill(writer.pick("orders"))
        add(writer.fill(writer.pick("prompts")) + "\n\n" + text if draw.random() < 0.3 else text, 1, "direct_override")
    for _ in range(COUNTS["indirect"]):
        text = writer.document(writer.order())
        if draw.random() < 0.15:
            text = writer.mail() + "\n" + writer.order()
        asked = draw.random() < 0.3
        add(writer.pick("wishes") + "\n\n" + text if asked else text, 1, "indirect", "user" if asked or draw.random() < 0.3 else "tool")
    for _ in range(COUNTS["errand"]):
        add(writer.document(writer.fill(writer.pick("errands"))), 1, "indirect_plain", "tool")
    for _ in range(COUNTS["prompts"]):
        texts = [writer.fill(writer.pick(draw.choice(("prompts", "prompts", "errands")))) for _ in range(draw.choice((1, 1, 2)))]
        add(" ".join(texts), 0, "user_prompt")
    for _ in range(COUNTS["documents"]):
        inner = " ".join(writer.fill(writer.pick("honest")) for _ in range(draw.choice((0, 1, 1, 2))))
        text = writer.document(inner)
        asked = draw.random() < 0.3
        add(writer.pick("wishes") + "\n\n" + text if asked else text, 0, "doc", "user" if asked or draw.random() < 0.3 else "tool")
    for _ in range(COUNTS["mentions"]):
        add(writer.mention(), 0, "mention_quoted", draw.choice(("user", "user", "tool")))
    for _ in range(COUNTS["honest"]):
        add(
            " ".join(writer.fill(writer.pick("honest")) for _ in range(draw.randint(1, 3))),
            0,
            "hard_negative",
            draw.choice(("user", "tool")),
        )
    for _ in range(COUNTS["mails"]):
        add(writer.mail(), 0, "doc_email", draw.choice(("user", "tool")))
    for _ in range(COUNTS["limits"]):
        add(writer.limited(), 0, "constraint_prompt")
    for _ in range(COUNTS["personas"]):
        add(writer.fill(writer.pick("personas")), 0, "persona_prompt", draw.choice(("user", "user", "system")))
    for name, role in (("harness", "user"), ("results", "tool"), ("tool_texts", "tool")):
        texts: dict[str, None] = {}
        while len(texts) < COUNTS[name]:
            texts[writer.fill(writer.pick(name))] = None
        for text in texts:
            add(text, 0, name, role, PROGRAMS)
    return out
