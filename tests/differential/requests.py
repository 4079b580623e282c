"""Requests that hide a prompt, made by seed: a shape of JSON or form, a charset, a coding, a framing, a path, headers.

Each step takes a plain request and changes one thing that some server may accept. Not every mutant is valid: the servers say.
"""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

SAID = "hello MARKER words"
KINDS = ("json", "charset", "coding", "path", "type", "form", "framing", "head")


@dataclass
class Sample:
    seed: int
    steps: list[str]
    raw: bytes


@dataclass
class _Request:
    rng: random.Random
    path: str = "/v1/chat/completions"
    method: bytes = b"POST"
    version: bytes = b"HTTP/1.1"
    type: str | None = "application/json"
    text: str = ""
    body: bytes | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    head: list[bytes] = field(default_factory=list)  # lines as they are
    framing: Callable[[bytes], tuple[bytes, bytes]] | None = None  # body to (header lines, framed body)
    end: bytes = b"\r\n"
    steps: list[str] = field(default_factory=list)

    def encoded(self) -> bytes:
        return self.body if self.body is not None else self.text.encode("utf-8", "surrogatepass")

    def bytes(self) -> bytes:
        body = self.encoded()
        lines, framed = self.framing(body) if self.framing else (b"Content-Length: %d\r\n" % len(body), body)
        out = self.method + b" " + self.path.encode("latin-1") + b" " + self.version + b"\r\nHost: node\r\n"
        if self.type is not None:
            out += b"Content-Type: " + self.type.encode("latin-1") + b"\r\n"
        for name, value in self.headers:
            out += name + b": " + value + b"\r\n"
        out += b"".join(self.head) + lines + b"\r\n"
        return (out.replace(b"\r\n", self.end) if self.end != b"\r\n" else out) + framed


def make(seed: int, kinds: tuple[str, ...] = KINDS) -> Sample:
    rng = random.Random(seed)
    request = _Request(rng)
    completion = rng.random() < 0.25
    request.path = "/v1/completions" if completion else rng.choice(("/v1/chat/completions", "/v1/chat/completions", "/api/chat"))
    request.text = json.dumps(
        {"model": "m", "prompt": SAID} if completion else {"model": "m", "messages": [{"role": "user", "content": SAID}]},
        separators=rng.choice(((",", ":"), (", ", ": "), (" , ", " : "))),
    )
    available = [(kind, step) for kind in kinds for step in _STEPS[kind]]
    for kind, step in rng.sample(available, rng.choice((1, 1, 2, 2, 3, 4))):
        request.steps.append(f"{kind}.{step.__name__.lstrip('_')}")
        step(request)
    return Sample(seed, request.steps, request.bytes())


# --- JSON -----------------------------------------------------------------------------------------------------------------


def _key_case(r: _Request) -> None:
    for key in ("model", "messages", "role", "content", "prompt"):
        if r.rng.random() < 0.6:
            other = r.rng.choice((key.upper(), key.capitalize(), "".join(r.rng.choice((c, c.upper())) for c in key)))
            r.text = r.text.replace(f'"{key}"', f'"{other}"')


def _long_s(r: _Request) -> None:
    r.text = r.text.replace('"messages"', '"me\u017f\u017fages"')  # Go folds U+017F with s


def _again(r: _Request) -> None:
    key, benign = r.rng.choice((("messages", '[{"role":"user","content":"benign"}]'), ("content", '"benign"'), ("prompt", '"benign"')))
    name = r.rng.choice((key, key, key.capitalize(), key.upper()))
    space = r.rng.choice(("", " ", "\n", "\t"))
    if r.rng.random() < 0.5:
        r.text = r.text.replace(f'"{key}"', f'"{name}"{space}:{benign},"{key}"', 1)
    elif key == "content":
        r.text = r.text.replace(f'"{SAID}"', f'"{SAID}","{name}"{space}:{benign}', 1)
    else:
        r.text = f'{r.text[:-1]},"{name}"{space}:{benign}}}'


def _escaped(r: _Request) -> None:
    for word in ("model", "messages", "content", "prompt", "MARKER"):
        if r.rng.random() < 0.6:
            at = r.rng.randrange(len(word))
            r.text = r.text.replace(word, f"{word[:at]}\\u{ord(word[at]):04x}{word[at + 1 :]}")


def _numbers(r: _Request) -> None:
    value = r.rng.choice(("NaN", "-Infinity", "1e999", "9" * 400, "9" * 5000, "-0", "01", "1.", "+1", "0x1", "1e400"))
    r.text = r.text.replace('"model"', f'"temperature":{value},"model"', 1)


def _controls(r: _Request) -> None:
    r.text = r.text.replace("hello", "hel" + r.rng.choice(("\n", "\t", "\x01", "\0", "\x7f", "\u2028", "\ud800", "\udc00")) + "lo")


def _behind(r: _Request) -> None:
    r.text += r.rng.choice((" garbage", "\n{}", "\0", "\0" * 9, "}", "]", ",", "\n\n", " " * 3000, r.text, "/* x */", "\x1a"))


def _before(r: _Request) -> None:
    r.text = (
        r.rng.choice(("\n", " " * 3000, "\t\r\n", "\ufeff", "\x0b", "\x0c", "/* x */", "// x\n", ")]}',\n", "\0", "\x1e", "data: "))
        + r.text
    )


def _deep(r: _Request) -> None:
    depth = r.rng.choice((50, 199, 201, 490, 990, 1100, 5000, 9990, 10_001))
    shape = r.rng.choice((("[", "1", "]"), ('{"a":', "1", "}"), ('[{"a":', "1", "}]")))
    r.text = r.text.replace('"model"', f'"x":{shape[0] * depth}{shape[1]}{shape[2] * depth},"model"', 1)


def _commas(r: _Request) -> None:
    r.text = r.rng.choice(
        (
            r.text.replace("}", ",}", 1),
            r.text.replace("]", ",]", 1),
            r.text[:-1],
            r.text.replace('"user"', "'user'"),
            r.text.replace('"model"', "model"),
        )
    )


def _large(r: _Request) -> None:
    size = r.rng.choice((1000, 70_000, 300_000))
    r.text = r.text.replace('"model"', f'"x":"{r.rng.choice("ab ") * size}","model"', 1)


def _parts(r: _Request) -> None:
    r.text = r.text.replace(f'"{SAID}"', f'[{{"type":"{r.rng.choice(("text", "input_text", "weird"))}","text":"{SAID}"}}]', 1)


def _roles(r: _Request) -> None:
    r.text = r.text.replace('"user"', r.rng.choice(('"assistant"', '"User"', '"system"', '"x y"', '""', '"tool"')), 1)


def _array(r: _Request) -> None:
    r.text = f"[{r.text}]"


def _bad_bytes(r: _Request) -> None:
    r.body = r.encoded().replace(
        b"hello", b"hel" + r.rng.choice((b"\xff", b"\xe9", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf")) + b"lo"
    )


# --- charset, coding ------------------------------------------------------------------------------------------------------


def _charset(r: _Request) -> None:
    name = r.rng.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig", "latin-1"))
    r.body = r.text.encode(name, "replace")


def _declared(r: _Request) -> None:
    r.type = "application/json; charset=" + r.rng.choice(("utf-8", "UTF-16", "utf-16le", "latin1", "utf-7", "nonsense", '"utf-8"'))


def _coded(r: _Request) -> None:
    name, code = r.rng.choice(
        (
            ("gzip", gzip.compress),
            ("deflate", zlib.compress),
            ("x-gzip", gzip.compress),
            ("deflate", lambda data: zlib.compress(data)[2:-4]),
        )
    )
    r.body = code(r.encoded())
    if r.rng.random() < 0.7:
        r.headers.append((b"Content-Encoding", name.encode()))


def _only_declared(r: _Request) -> None:
    r.headers.append(
        (
            b"Content-Encoding",
            r.rng.choice((b"gzip", b"br", b"zstd", b"deflate", b"identity", b"foo", b"gzip, gzip", b"utf-8", b"aws-chunked")),
        )
    )


# --- path, type, form -----------------------------------------------------------------------------------------------------


def _path(r: _Request) -> None:
    path, rng = r.path, r.rng
    at = rng.randrange(1, len(path))
    r.path = rng.choice(
        (
            path[:at] + f"%{ord(path[at]):02{rng.choice('xX')}}" + path[at + 1 :],
            path.replace("/", "//", 1), path.replace("/", "/./", 1), "/x/.." + path, path + "/", path + ";a=1", path + "?a=1", path + "#x", path.upper(),
            path.title(), "http://node" + path, "http://node:80" + path, "//node" + path, path.replace("/", "%2F"), path.replace("/", "\\"), path + "%20", path + "%00",
            path + "?" + "a" * rng.choice((100, 5000)), path + "/.", "/%2e" + path, "/x/%2e%2e" + path,
        )
    )  # fmt: skip


def _method(r: _Request) -> None:
    r.method = r.rng.choice((b"PUT", b"PATCH", b"GET", b"DELETE", b"post", b"Post", b"FOO", b"OPTIONS"))


def _type(r: _Request) -> None:
    r.type = r.rng.choice(
        (None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/octet-stream", "text/event-stream",
         "APPLICATION/JSON", "application/vnd.api+json", "application/json, text/plain", "image/png", "application/x-ndjson", "json", "application/gzip")
    )  # fmt: skip


def _multipart(r: _Request) -> None:
    r.path = r.rng.choice(("/v1/images/edits", "/v1/completions", "/v1/chat/completions"))
    mark = r.rng.choice(("B", "----x'y", "a" * 70, "b c"))
    end = r.rng.choice(("\r\n", "\r\n", "\r\n", "\n"))
    name = r.rng.choice(
        (
            'name="prompt"',
            "name=prompt",
            'NAME="prompt"',
            'x=1; name="prompt"',
            'name="prompt"; x="y"',
            'name="pro\\mpt"',
            "name*=utf-8''prompt",
        )
    )
    extra = r.rng.choice(
        (
            "",
            f"Content-Type: text/plain{end}",
            f"Content-Type: text/plain; charset=utf-16{end}",
            f"X-A: b{end}",
            f"Content-Transfer-Encoding: base64{end}",
        )
    )
    file = f'--{mark}{end}Content-Disposition: form-data; name="image"; filename="a.png"{end}Content-Type: image/png{end}{end}\x89PNG{end}'
    fields = [
        f'--{mark}{end}Content-Disposition: form-data; name="model"{end}{end}m{end}',
        f"--{mark}{end}Content-Disposition: form-data; {name}{end}{extra}{end}{SAID}{end}",
        file,
    ]
    r.rng.shuffle(fields)
    r.text = (
        r.rng.choice(("", "", "preamble" + end))
        + "".join(fields)
        + r.rng.choice((f"--{mark}--{end}", f"--{mark}--", f"--{mark}--{end}epilogue"))
    )
    r.body = r.text.encode("latin-1", "replace")
    r.type = f"multipart/form-data; boundary={mark if mark.isalnum() else chr(34) + mark + chr(34)}"


def _urlencoded(r: _Request) -> None:
    r.path = "/v1/completions"
    r.text = r.rng.choice(
        (
            "model=m&prompt=hello+MARKER+words",
            "prompt=%4dARKER",
            "model=m&pr%6fmpt=MARKER",
            "prompt=MARKER&prompt=benign",
            "prompt=benign&prompt=MARKER",
            "a;prompt=MARKER",
            "prompt=MARKER&&=",
        )
    )
    r.body = None
    r.type = "application/x-www-form-urlencoded"


# --- framing, head --------------------------------------------------------------------------------------------------------


def _chunked(r: _Request) -> None:
    rng = r.rng
    size = rng.choice((1, 7, 100, 5000))
    zeros = rng.choice((0, 0, 3, 20))
    extension = rng.choice((b"", b"", b";a=b", b" ;a", b';a="b c"', b"; " + b"x" * 300))
    end = rng.choice((b"\r\n", b"\r\n", b"\r\n", b"\n"))
    trailer = rng.choice((b"", b"", b"X: y\r\n"))
    line = rng.choice(
        (
            b"Transfer-Encoding: chunked",
            b"transfer-encoding:chunked",
            b"Transfer-Encoding: CHUNKED",
            b"Transfer-Encoding:\tchunked ",
            b"Transfer-Encoding: identity, chunked",
            b"Transfer-Encoding:\r\n chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            b"Transfer-Encoding: chunked\r\nContent-Length: 5",
        )
    )

    def frame(body: bytes) -> tuple[bytes, bytes]:
        out = b""
        for at in range(0, len(body), size):
            piece = body[at : at + size]
            out += b"0" * zeros + rng.choice((b"%x", b"%X")) % len(piece) + extension + end + piece + end
        return line + b"\r\n", out + b"0" + end + trailer + end

    r.framing = frame


def _length(r: _Request) -> None:
    form = r.rng.choice(
        (
            b"Content-Length: 000%d\r\n",
            b"Content-Length: 00000000000000000000%d\r\n",
            b"content-length:%d\r\n",
            b"Content-Length:  %d \r\n",
            b"Content-Length: +%d\r\n",
            b"Content-Length: %d, %d\r\n",
            b"Content-Length: %d\r\nContent-Length: %d\r\n",
            b"CONTENT-LENGTH: %d\r\n",
        )
    )
    r.framing = lambda body: (form % ((len(body),) * form.count(b"%d")), body)


def _lines(r: _Request) -> None:
    r.end = b"\n"


def _version(r: _Request) -> None:
    r.version = r.rng.choice((b"HTTP/1.0", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 ", b"HTTP/2.0"))


def _many_headers(r: _Request) -> None:
    size, count = r.rng.choice(((10, 90), (700, 60), (7000, 8), (60_000, 1)))
    r.headers += [(b"X-%d" % number, b"a" * size) for number in range(count)]


def _odd_headers(r: _Request) -> None:
    r.head.append(
        r.rng.choice(
            (
                b"X-A: 1\r\n folded\r\n",
                b"X-B:\x80\xff\r\n",
                b"X_C: 1\r\n",
                b"Expect: 100-continue\r\n",
                b"Connection: close\r\n",
                b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
                b"X-D : 1\r\n",
                b":x: 1\r\n",
                b"X-E: \0\r\n",
                b"no colon\r\n",
            )
        )
    )


_STEPS: dict[str, tuple[Callable[[_Request], None], ...]] = {
    "json": (
        _key_case,
        _long_s,
        _again,
        _escaped,
        _numbers,
        _controls,
        _behind,
        _before,
        _deep,
        _commas,
        _large,
        _parts,
        _roles,
        _array,
        _bad_bytes,
    ),
    "charset": (_charset, _declared),
    "coding": (_coded, _only_declared),
    "path": (_path, _method),
    "type": (_type,),
    "form": (_multipart, _urlencoded),
    "framing": (_chunked, _length, _lines, _version),
    "head": (_many_headers, _odd_headers),
}
