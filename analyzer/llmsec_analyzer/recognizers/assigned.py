"""Recognizers for what one pattern cannot say. A rule names one of them as its `recognizer`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from llmsec_analyzer.engine.recognizer_api import Match, Recognizer, View
from llmsec_analyzer.recognizers.validators import entropy, not_placeholder
from llmsec_analyzer.rules.schema import Rule

# What assigns a value begins within so many characters of the name, and so does the value.
_BEGINS_WITHIN: Final = 88
_BEFORE: Final = 84
_PEM_LONGEST: Final = 12_000  # an RSA key of 8192 bits is 6,400 characters


class PrivateKey:
    """A PEM or OpenSSH private key: from its first line to its last, or as far as it goes."""

    reach = 80
    ordered = False
    near = 0
    _HEAD = re.compile(r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
    _TAIL = re.compile(r"-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----")
    _NOISE = re.compile(r"\\+[nr]|[^A-Za-z0-9+/=]")
    _LINE = re.compile(r"[^\n]{0,12000}\n?")
    _HEADER = re.compile(r"[\s\"'+#*]*(?:Proc-Type|DEK-Info|Comment|Version)\b")
    _KEY_TEXT = re.compile(r"[A-Za-z0-9+/=]{16}")

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def decide(self, view: View, start: int, end: int) -> list[Match] | int:
        first = max(view.base, start - 60)
        text = view.slice(first, end + _PEM_LONGEST)
        head = next((found for found in self._HEAD.finditer(text) if first + found.start() <= start < first + found.end()), None)
        whole = view.closed or view.end >= end + _PEM_LONGEST
        if head is None:
            return [] if whole or view.end >= end + 40 else end + 40
        if not whole and len(text) < head.end() + 120:
            return first + head.end() + 120
        after = text[head.end() : head.end() + 120]
        if len(self._NOISE.sub("", after)) < 40 or " and " in after:
            return []
        stop = at = head.end()
        while at < len(text):
            line = self._LINE.match(text, at)
            assert line is not None
            tail = self._TAIL.search(line[0])
            if tail is not None:
                stop = at + tail.end()
                break
            if line.end() == len(text) and not whole and not line[0].endswith("\n"):
                return view.end + 1 + (view.end - end) // 16  # a line that is still arriving
            if at > head.end() and line[0].strip() and self._KEY_TEXT.search(line[0]) is None and self._HEADER.match(line[0]) is None:
                break
            at = line.end()
            if line[0].strip():
                stop = at if not line[0].endswith("\n") else at - 1
        else:
            if not whole:
                return view.end + 1 + (view.end - end) // 16
        return [
            Match(
                rule=self.rule, start=first + head.start(), end=first + stop, severity=self.rule.severity, confidence=self.rule.confidence
            )
        ]


class AssignedSecret:
    """A value assigned to a name that says it is secret: `api_key = "…"`, `password: …`, `--token …`, `the password is …`."""

    reach = _BEFORE + 4
    ordered = False
    near = 0
    # Matched where the keyword ends: what is left of the name, what assigns, and the value.
    _ASSIGNS = r"""(?ix)
        (?P<tail> [a-z0-9_. -]{0,24}? )
        (?: ["'`\])}\\]{0,4} [ \t]{0,3} (?: ={1,3}>?(?:[ \t]{0,2}\([ \t]{0,2}["'][^"'\n]{1,24}["'][ \t]{0,2},)?
              | :[ \t]{1,2}[a-z0-9._@-]{2,24}[ ]/(?=[ ]) | :{1,2}=? | => | ->(?!-) | \|\|?:? | <- | \?= | , | ：
              | :[ \t]{0,2}(?:&?(?:'static[ ])?str|string|secretstr|const[ \t]char[ \t]?\*|optional\[str\])[ \t]{0,2}(?:\|[ \t]?none[ \t]{0,2})?=
              | \{[ \t]{0,4}default[ \t]{0,4}= | :[ \t]{1,3}[>|]-?[ ]?\n[ \t]{1,16} | </key>\s{0,8}<string>
              | \((?:[ \t]{0,2}["'][^"'\n]{1,24}["'][ \t]{0,2},)?[ \t]{0,2}(?=["']) )
          | ["']?[ \t]{1,3}(?:is|ist|es|est|e|è|são|является)[ \t]{0,2}:? (?=[ \t])
          | ["']? [ \t]{1,2} (?=["'])
          | [">]{1,2} (?=[^<\s]) | ["']?[ \t]{1,4}value[ \t]{0,4}= | ["']?[ \t]{0,4}\n[ \t]{1,40}value[ \t]{0,4}:
          | (?<=[a-z]) [ \t] (?=[^\s=:-]{12}) )
        [ \t]{0,4} (?: (?:value|bearer|basic|token|new|string|\[\]byte|bytes|secretstr|[fbur@](?=["'`]))[ \t]{0,2}[=(]?[ \t]{0,2} ){0,2}"""
    _BEGINNING = re.compile(_ASSIGNS)
    # What every beginning has, and few of the sentences that hold such a word: a sixth of the cost of looking for a beginning.
    _MAY_BEGIN = re.compile(
        r"""(?ix)(?> [a-z0-9_.\ \t-]{0,31} ) [=:：>|,<?"'`(\])}\n\\{]
          | [a-z0-9_.\ -]{0,24}? [ \t] (?:is|ist|es|est|e|è|são|является) [ \t:]
          | [a-z0-9_.\ -]{0,24}? (?<=[a-z]) [ \t] [^\s=:-]{12}"""
    )
    _ASSIGNED = re.compile(
        _ASSIGNS
        + r"""
        (?P<quote> &quot; | &\#3[49]; | \\?["'`]? )
        (?P<v> [^\s"'`<>;,\\]{5,200} | (?<=["'`])[^\n"'`<>\\]{5,120}(?=["'`]) )
        (?P<close> \\?["'`]? )"""
    )
    _HEAD = re.compile(r"[A-Za-z0-9_.$-]{0,40}$")
    _NAME = re.compile(
        r"(?i)pass(?!eng|ive|port|age|ion|ing\b)|pwd|psw|pas+wo?r?d|secret|token|cred|auth|(?<![a-z])pw(?![a-z])|(?:^|[^a-z])key|_key"
        r"|(?:api|access|auth|private|signing|encryption|master|account|shared|license|client|secret|subscription|service|admin|app"
        r"|write|read|session|storage|project|server|user|consumer|deploy|host|ssh|web|root)[_. -]?key"
        r"|contraseña|пароль|密码|密碼|パスワード|비밀번호|senha|wachtwoord|has[łl]o|lösenord|şifre|clave"
    )
    _STRONG = re.compile(
        r"(?i)pass|pwd|psw|pas+wo?r?d|(?<![a-z])pw(?![a-z])|contraseña|пароль|密码|密碼|パスワード|비밀번호|senha|wachtwoord|has[łl]o|lösenord|şifre"
    )
    _CODE = re.compile(
        r"[({\[][^)}\]]*[)}\]]?$|^\$|^%|^&|^\{\{|\$\{|^<|^os\.|^process\.|^env[.:(]|^env$|^self\.|^this\.|^config|^settings\.|^request|^getenv|^ENV"
        r"|^args\.|^params|^None\b|^null\b|^nil$|^true$|^false$|^undefined|^function|^new\s|^lambda|^string$|^String$|^str$|^file:|^vault:|^secretsmanager|^arn:"
        r"|^https?://|^/(?:[a-z]+/)+|^\.{1,2}/|^\*+$|^-+$|^=+$|^#|^@|\.(?:get|env|read|load|decode|encode)\b|::|=>|->|\|\||&&|^data:|^blob:|^[a-z_]+(?:\.[a-z_]+[0-9]?)+\.?$"
        r"|^(?i:enc|secret|cipher)[\[(]|^[a-z]+(?:[-_.][a-z]+)*[-_.]v?\d+(?:\.\d+)*$|\.(?:pdf|png|jpe?g|gif|svg|txt|json|ya?ml|pem|crt|html?|css|js|py|zip|csv)$|^[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,6}$|^-----|^AAAA[BEC]"
    )
    _UUID = re.compile(r"(?i)^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$")
    _LETTERS = re.compile(r"[A-Za-z]+(?:[-_. ][A-Za-z]+)*[.?:]?")
    _NUMERIC = re.compile(r"(?i)secret|api[_. -]?key|access[_. -]?token")  # names under which even plain numbers are keys
    _PARTS = re.compile(r"[^A-Za-z0-9]+")
    _TURNS = re.compile(
        r"[0-9][A-Za-z]+[0-9]|[A-Za-z][0-9]+[A-Za-z]|[a-z][A-Z][a-z]?[A-Z0-9]|[A-Z]{2}[a-z]{1,3}[A-Z]|^[a-z]{24}|^[A-Z]{24}"
    )
    # Functions that are given a secret; of others, what they are given is a name.
    _GIVES = re.compile(r"(?i)(?:^|[^a-z])(?:set|with|use)[_A-Z]|credentials?$|(?:^|[^a-z])auth$")
    _VERB = re.compile(r"(?i)(?:^|[^a-z])pass[ ]*$")
    _HTML_QUOTE = re.compile(r"&(?:quot|#3[49])$")
    _HUMP = re.compile(r"[a-z][A-Z]")
    _NOT_SECRET_NAMES = re.compile(
        r"(?i)public|webtoken|ssh-rsa|nonce|primary|foreign|sort|partition|cache|key_?name|key_?type|token_?type|token_?count|max_?tokens?|num_?tokens|tokens\b"
        r"|keyboard|keyword|author(?!iz)|passenger|passport|passive|bypass|compass|tokeni[sz]|secretary|pass_?through|monkey|turkey|donkey|hotkey|keystone|"
        r"csrf|checksum|integrity|resolved|sha\d|version|revision|srcrev|(?<![a-z])rev(?![a-z])|commit|hash|etag|expires|length|policy|rotat|file|path|url$|uri$|endpoint|field|label|column|prompt|hint|example"
        # What counts, orders, points on or belongs to a protocol: identifiers and cursors, which open nothing by themselves.
        r"|(?:page|next|prev(?:ious)?|cursor|continuation|continue|sync|resume|idempotency|routing|translation|message|event|object|bucket|s3|row|group|index"
        r"|de-?dup|unique|lookup|join|shard|lock|redis|query|feature|setting|menu|form|style|theme|locale|lang|msg|title|template|asset|image|media|doc"
        r"|document|blob|upload|attachment|folder|node|entity|resource|record|tx|txn|transaction|order|product|sku|track|trace|span|job|task|queue|batch"
        r"|data|item|map|dict|state|change|delta|scroll|skip|start|end|bos|eos|pad|stop|special|sep|mask|unk)[_. -]?(?:token|key)"
        r"|such as|(?<![a-z])like(?![a-z])|(?<![a-z])auth0$|ice-pwd|auth_?mode|auth_?type|auth_?method|authentication|authority|tokens?[_-]?uri"
    )
    # A name that ends so says which secret is meant, or what kind it is, and never the secret.
    _NAMES_OF_SECRETS = re.compile(
        r"(?:[_.-](?i:ids?|uuid|name|type|kind|ref|arn|count|ttl|alias)|Ids?|ID|Uuid|Name|Type|Kind|Ref|Arn)[ ]?$"
    )
    # What stands before a name: a checksum of, a revision of, a resource name that goes on.
    _NOT_SECRET_BEFORE = re.compile(
        r"(?i)(?:checksum|hash|digest|fingerprint|sha-?\d+|commit|rev(?:ision)?)(?:sum)?[ ](?:of|for)[ ][a-z ]{0,12}$|arn:[a-z-]{0,12}:?$"
    )
    # Whose form their issuer fixes: the issuer's own rule has them, and what that does not take is too short, too long or mistyped.
    _ISSUED = re.compile(
        r"gh[opsur]_|github_pat_|glpat-|A(?:KIA|SIA|BIA|CCA)(?=[A-Z0-9]{8})|AIza(?=[A-Za-z0-9_-]{8})|npm_|hf_|xox[bp]-|[sr]k_live_|[sr]k_test_|SG\.|dop_v1_|shp(?:at|ca|pa|ss)_|pypi-AgE|hvs\."
        r"|sk-ant-|glsa_|lin_api_|rubygems_|dckr_pat_"
    )

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def decide(self, view: View, start: int, end: int) -> list[Match] | int:
        last = end + 280
        first = max(view.base, start - _BEFORE)
        text = view.slice(first, last)
        whole = view.closed or view.end >= last
        if not whole and view.end < end + _BEGINS_WITHIN:
            return end + _BEGINS_WITHIN
        # Most words of this kind assign nothing, and that shows in the next few characters.
        if self._MAY_BEGIN.match(text, end - first) is None or self._BEGINNING.match(text, end - first) is None:
            return []
        # Where the line has ended, nothing after can change the answer; but a value may stand on the next line.
        newline = text.find("\n", end - first)
        if not whole and (newline < 0 or (len(text) < newline + 240 and text.find("\n", newline + 1) < 0)):
            return end + max(_BEGINS_WITHIN, (view.end - end) * 3 // 2)
        found = self._ASSIGNED.match(text, end - first)
        if found is None:
            return []
        head = self._HEAD.search(text, max(0, start - first - 40), start - first)
        name = (head[0] if head is not None else "") + text[start - first : end - first] + found["tail"]
        if self._NAME.search(name) is None or self._NOT_SECRET_NAMES.search(name) or self._NAMES_OF_SECRETS.search(name):
            return []
        begins = start - first - (len(head[0]) if head is not None else 0)
        if self._NOT_SECRET_BEFORE.search(text, max(0, begins - 40), begins):
            return []
        assigner = text[found.end("tail") : found.start("quote")].strip()
        if not assigner and self._VERB.search(name):
            return []
        if assigner.startswith("(") and self._GIVES.search(name) is None:
            return []
        return self._judge(found, name, first)

    def _is_words(self, value: str) -> bool:
        """Words, also in camel case: letters whose case changes no more often than words do."""
        return self._LETTERS.fullmatch(value) is not None and 4 * len(self._HUMP.findall(value)) <= len(value)

    def _is_label(self, value: str) -> bool:
        """Words and numbers that are joined, as in paths and names of things: in no part do letters and digits take turns."""
        return not any(self._TURNS.search(part) for part in self._PARTS.split(value))

    def _judge(self, found: re.Match[str], name: str, first: int) -> list[Match]:
        rule = self.rule
        value, start = found["v"], found.start("v")
        quote, close = found["quote"], found["close"]
        if "&" in value:  # a closing quotation mark of HTML, whose semicolon ended the value
            bare = self._HTML_QUOTE.sub("", value)
            value, close = bare, close or value[len(bare) :]
        quoted = bool(quote) and bool(close)
        if not quoted:
            stripped = value.rstrip(".,:;!?)]}")
            value = stripped
        if len(value) < 5:
            return []
        classes = (value.upper() != value, value.lower() != value, any(map(str.isdigit, value)), not value.isalnum())
        if not (classes[2] or quoted or sum(classes) >= 3 or len(value) >= 24):
            return []  # nothing below takes it
        digits = sum(map(str.isdigit, value))
        bits = entropy(value)
        confidence = 0.0
        if self._STRONG.search(name):
            if " " in value and not quoted:
                return []
            if (classes[2] and (classes[0] or classes[1])) or (sum(classes) >= 3 and not self._is_words(value)):
                confidence = 0.7
            elif (
                quoted
                and len(value) >= 6
                and not value.isdigit()
                and " " not in value
                and (classes[3] or bits > 2.5)
                and not self._is_words(value)
            ):
                confidence = 0.55
        elif " " not in value and len(value) >= 10:
            numeric = digits == len(value) and digits >= 15 and self._NUMERIC.search(name) is not None
            if self._is_label(value) and not numeric:
                return []
            is_hex = len(value) >= 16 and all(c in "0123456789abcdefABCDEF-" for c in value)
            if is_hex and digits and bits > 2.6:
                confidence = 0.65
            elif digits >= 2 and (classes[0] or classes[1]) and bits >= (3.0 if len(value) >= 16 else 2.9):
                confidence = 0.7
            elif len(value) >= 24 and classes[0] and classes[1] and bits > 4.0 and not self._is_words(value):
                confidence = 0.55
        # What the value may be instead costs most to tell, so it is asked last.
        if (
            not confidence
            or self._CODE.search(value)
            or not not_placeholder(value)
            or self._ISSUED.match(value)
            or (self._UUID.match(value) and "secret" not in name.lower())
        ):
            return []
        at = first + start
        return [
            Match(
                rule=rule, start=at, end=at + len(value), severity=rule.severity, confidence=confidence, note=f"a value of {bits:.1f} bits a character is assigned to a name that says it is secret",
            )
        ]  # fmt: skip


class VendorSecret:
    """A random value assigned to a name that holds a vendor's: `ALGOLIA=…`, `"snyk": "…"`."""

    reach = 48
    ordered = False
    near = 0
    _ASSIGNMENT = re.compile(
        r"""(?x) (?P<name> [A-Za-z0-9_.-]{0,30} )
        ["'`\])}]{0,3} \s{0,3} (?: ={1,3}>? | :{1,2}=? | => | , | \s ) \s{0,4}
        (?: (?:value|bearer|token|key|is) \s*[=:(]?\s* ){0,2} ["'`]?
        (?P<v> [0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12} | [A-Za-z0-9_=+/-]{14,120} ) (?= ["'`\s,;)}<] | \.\s | \.?$ )"""
    )

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def decide(self, view: View, start: int, end: int) -> list[Match] | int:
        text = view.slice(end, end + 200)
        cut = text.find("\n")
        if cut < 0 and not view.closed and view.end < end + 200:
            return view.end + 1 + (view.end - end) // 8
        found = self._ASSIGNMENT.match(text if cut < 0 else text[:cut])
        if found is None:
            return []
        value = found["v"]
        digits = sum(char.isdigit() for char in value)
        if digits < 2 or digits == len(value) or entropy(value) < 3.0 or not not_placeholder(value):
            return []
        at = end + found.start("v")
        return [Match(rule=self.rule, start=at, end=at + len(value), severity=self.rule.severity, confidence=self.rule.confidence)]


RECOGNIZERS: dict[str, Callable[[Rule], Recognizer]] = {
    "private_key": PrivateKey,
    "assigned_secret": AssignedSecret,
    "vendor_secret": VendorSecret,
}
