"""What only shows when an answer is held against its request: leaks of the system prompt, refusals, jailbreaks that worked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_WORD = re.compile(r"\w+")
# So many words in a row are unlikely to be a coincidence: phrases that prompts and answers share are shorter.
LEAK_WORDS = 12
_SHINGLE = 6
_OWN_SHARE = 0.7

# From this length on, an answer is judged as it comes: then at each doubling, so that all of it costs twice what its end costs.
JUDGED_FROM = 100
_JUDGED_UP_TO = 32_768

_REFUSAL = re.compile(
    r"(?i)^\W*(?:(?:i['’]m|i am|we['’]re) (?:very |really |so )?sorry|sorry,|i apologi[sz]e|unfortunately,? i|i(?:['’]m| am) (?:not able|unable|not allowed|not permitted)"
    r"|i (?:can['’]?t|cannot|can not|won['’]t|will not|must decline|have to decline|don['’]t feel comfortable|do not feel comfortable)|as an ai(?: language model)?,? i (?:can|do|am)"
    r"|that(?:['’]s| is) (?:not )?something i (?:can['’]?t|cannot|won['’]t)|no,? i (?:can['’]?t|won['’]t)"
    r"|lo siento|no puedo|desculpe|não posso|je suis désolé|désolé|je ne peux pas|es tut mir leid|ich kann (?:das |dir |ihnen )?(?:leider )?nicht|mi dispiace|non posso"
    r"|het spijt me|ik kan (?:je |u )?(?:daar )?niet|przykro mi|nie mogę|извините|я не могу|к сожалению|вибачте|üzgünüm|maalesef)"
    r"|^\W*(?:抱歉|对不起|很抱歉|我无法|我不能|申し訳|すみません|できません|죄송|도와드릴 수 없|عذرا|آسف|لا أستطيع|متاسفم|क्षमा करें|मैं नहीं)"
)
_CONSENT = re.compile(
    r"(?i)^\W*(?:sure|certainly|absolutely|of course|yes[,!. ]|okay|ok[,!. ]|understood|here(?:['’]s| is| are)|as (?:dan|requested|you wish)|step 1|i have been pwned"
    r"|\[?(?:dan|jailbreak|developer mode)|my (?:system prompt|instructions|initial)|claro|bien sûr|natürlich|certo|конечно|当然|もちろん|물론)"
)


class AnswerSoFar:
    """The text of an answer as it arrives, up to a bound."""

    __slots__ = ("_chars", "_next", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._chars = 0
        self._next = JUDGED_FROM

    def add(self, texts: Sequence[str]) -> bool:
        """Whether it is time to judge it again."""
        self._pieces += texts
        self._chars += sum(map(len, texts))
        if self._chars < self._next:
            return False
        self._next = 2 * self._chars
        return True

    @property
    def is_full(self) -> bool:
        return self._chars > _JUDGED_UP_TO

    @property
    def text(self) -> str:
        self._pieces = ["".join(self._pieces)]
        return self._pieces[0]


def is_refusal(answer: str) -> bool:
    return _REFUSAL.search(answer[:400]) is not None


def is_consent(answer: str) -> bool:
    return len(answer) >= 40 and _CONSENT.search(answer[:200]) is not None


def is_of_prompt(system_prompt: str, text: str) -> bool:
    """Whether a text is mostly the system prompt's own words, in its order: what an operator's template repeats is the operator's."""
    shingles = _shingles(system_prompt)
    words = [found[0].lower() for found in _WORD.finditer(text)]
    rows = len(words) - _SHINGLE + 1
    if not shingles or rows < 1:
        return False
    return sum(hash(tuple(words[at : at + _SHINGLE])) in shingles for at in range(rows)) >= _OWN_SHARE * rows


def leaked(system_prompt: str, answer: str) -> tuple[int, int] | None:
    """The longest part of the answer that stands word for word in the system prompt, if it is long enough that a coincidence is unlikely."""
    shingles = _shingles(system_prompt)
    if not shingles:
        return None
    found = list(_WORD.finditer(answer))
    words = [word[0].lower() for word in found]
    best = (0, 0)
    run = 0
    for at in range(len(words) - _SHINGLE + 1):
        if hash(tuple(words[at : at + _SHINGLE])) in shingles:
            run += 1
            if run > best[1] - best[0]:
                best = (at - run + 1, at + 1)
        else:
            run = 0
    size = best[1] - best[0]
    if not size or size + _SHINGLE - 1 < LEAK_WORDS:
        return None
    return found[best[0]].start(), found[best[1] + _SHINGLE - 2].end()


@lru_cache(maxsize=16)
def _shingles(prompt: str) -> frozenset[int]:
    """Hashes of every few words in a row; none where the prompt is too short to be told from chance. Prompts return with each request."""
    words = [found[0].lower() for found in _WORD.finditer(prompt)]
    if len(words) < LEAK_WORDS:
        return frozenset()
    return frozenset(hash(tuple(words[at : at + _SHINGLE])) for at in range(len(words) - _SHINGLE + 1))


# Addresses and other words that nobody says twice by chance: with a dot, an at or a slash inside, or letters and digits mixed.
_TELLING = re.compile(r"[^\s\"'<>()\[\]{},;]{6,200}")


def followed(injected: str, trusted: str, answer: str) -> tuple[int, int] | None:
    """Where an answer takes up an address or another telling word of an injected order that nobody trusted has said."""
    for found in _TELLING.finditer(injected[:4_000]):
        word = found[0].rstrip(".:!?")
        telling = any(mark in word[1:-1] for mark in ".@/") or (any(map(str.isdigit, word)) and any(map(str.isalpha, word)))
        if telling and len(word) >= 6 and word not in trusted and (at := answer.find(word)) >= 0:
            return at, at + len(word)
    return None
