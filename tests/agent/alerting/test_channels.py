"""Each channel against a server of its kind: what arrives is as the vendor's documentation has it, and holds nothing that it must not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import socket
import ssl
import subprocess
import time
import traceback
import urllib.request
from pathlib import Path

import jsonschema
import msgspec
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from llmsec_agent.alerting.channels import SendError, channel_of
from llmsec_agent.alerting.channels.hooks import key_bytes, sign
from llmsec_agent.alerting.message import message_of
from llmsec_agent.alerting.plan import ChannelPlan
from llmsec_agent.config import channels as schema
from llmsec_tap.errors import ConfigError
from llmsec_tap.journal import SILENT
from support import alert_schemas
from support.alert_servers import Answer, receiver, syslog_server
from support.alerts import an_alert
from support.journal import Said
from support.tls_front import free_port, make_certificate

KEY = "0123456789abcdef0123456789abcdef"
SECRET = "hunter2hunter2"
HOSTILE = '<!channel> [x](http://evil) *a* \x1b[31m\r\nBcc: eve@example.com \u202e \ud800 ]"\\ ' + "long " * 300


def message(content=False, **changes):
    return message_of(an_alert(**changes), content=content)


def resolved():
    return message(state="resolved", alert_id="a2", findings=[], deviations=[])


def a_channel(name, settings, secrets=None, template=None, ca=None, journal=SILENT):
    return channel_of(ChannelPlan(name, settings, secrets or {}, template, ca), journal)


# Each: what is configured, its secrets, and the schema of what arrives.
OVER_HTTP = {
    "slack": (
        lambda url: schema.Slack(default_channel="#alerts"),
        lambda url: {"webhook_url": url + "/services/T/B/x"},
        alert_schemas.SLACK,
    ),
    "teams": (lambda url: schema.Teams(), lambda url: {"webhook_url": url + "/workflows/x"}, alert_schemas.TEAMS),
    "pagerduty": (lambda url: schema.PagerDuty(url=url + "/v2/enqueue"), lambda url: {"routing_key": KEY}, alert_schemas.PAGERDUTY),
    "opsgenie": (lambda url: schema.Opsgenie(url=url), lambda url: {"api_key": SECRET}, alert_schemas.OPSGENIE),
    "webhook": (lambda url: schema.Webhook(url=url), lambda url: {"token": SECRET}, alert_schemas.WEBHOOK),
    "ocsf": (lambda url: schema.OCSF(url=url), lambda url: {"token": SECRET}, alert_schemas.OCSF),
    "alertmanager": (lambda url: schema.Alertmanager(url=url), lambda url: {}, alert_schemas.ALERTMANAGER),
}


def over_http(name, url, **more):
    settings, secrets, _ = OVER_HTTP[name]
    return a_channel(name, settings(url), secrets(url), **more)


def texts_of(value):
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in texts_of(item)]
    return [text for item in value for text in texts_of(item)] if isinstance(value, list) else []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.mark.parametrize("name", OVER_HTTP)
def test_what_arrives_is_as_the_vendor_documents_it(name):
    with receiver() as server:
        channel = over_http(name, server.url)
        channel.send(message())
        channel.send(message(**dict.fromkeys(("summary", "model", "process", "tenant", "dedup_key", "rule", "alert_id"), HOSTILE)))
        channel.send(
            message(findings=[], deviations=[], pii_types=[], tenant=None, model=None, node=None, server="", client="", exchange_id="")
        )
        if name != "opsgenie":
            channel.send(resolved())
        for post in server.posts:
            jsonschema.validate(post.json, OVER_HTTP[name][2])
            said = " ".join(texts_of(post.json))
            assert "ignore all p***" not in said  # no content unless it is configured
            assert not {"\x1b", "\u202e", "\r"} & set(said)
        assert any("95" in text for text in texts_of(server.posts[0].json))


def test_slack_mentions_nobody_and_teams_links_nowhere():
    with receiver() as server:
        over_http("slack", server.url).send(message(model=HOSTILE, summary=HOSTILE))
        over_http("teams", server.url).send(message(model=HOSTILE, summary=HOSTILE))
    slack, teams = (post.json for post in server.posts)
    assert slack["channel"] == "#alerts"
    marked = [slack["text"], *(field["text"] for block in slack["blocks"] for field in block.get("fields", ()))]
    assert any("&lt;!channel&gt;" in text for text in marked)
    assert not any("<!channel>" in text for text in marked)
    assert "[x](" not in "".join(texts_of(teams))
    assert r"\[x\]\(" in "".join(texts_of(teams))


def test_pagerduty_and_opsgenie_resolve_by_the_key_that_they_triggered_with():
    with receiver() as server:
        for name in ("pagerduty", "opsgenie"):
            channel = over_http(name, server.url)
            channel.send(message())
            channel.send(resolved())
    trigger, resolve, create, close = server.posts
    assert (trigger.json["event_action"], resolve.json["event_action"]) == ("trigger", "resolve")
    assert trigger.json["dedup_key"] == resolve.json["dedup_key"] == "high_risk_prompt_injection:acme"
    assert trigger.json["payload"]["severity"] == "critical"
    assert create.headers["authorization"] == f"GenieKey {SECRET}"
    assert create.json["priority"] == "P1"
    assert close.path == "/v2/alerts/high_risk_prompt_injection%3Aacme/close?identifierType=alias"
    jsonschema.validate(close.json, alert_schemas.OPSGENIE_CLOSE)


def test_a_resolve_closes_the_ocsf_finding_and_ends_the_alert_of_alertmanager():
    with receiver() as server:
        for name in ("ocsf", "alertmanager"):
            channel = over_http(name, server.url)
            channel.send(message())
            channel.send(resolved())
    created, closed, firing, ended = (post.json for post in server.posts)
    assert (created["activity_id"], closed["activity_id"], closed["type_uid"], closed["status_id"]) == (1, 3, 200_403, 4)
    assert created["finding_info"]["uid"] == closed["finding_info"]["uid"]
    assert firing[0]["labels"] == ended[0]["labels"]
    assert firing[0]["endsAt"] > firing[0]["startsAt"]
    assert ended[0]["endsAt"] == firing[0]["startsAt"]


def test_content_goes_out_only_where_it_is_configured():
    with receiver() as server:
        for name in OVER_HTTP:
            server.posts.clear()
            over_http(name, server.url).send(message(content=True))
            assert "ignore all p***" in " ".join(texts_of(server.posts[0].json)).replace("\\", ""), name


# --- signatures -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [SECRET, "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()])
def test_a_webhook_is_signed_as_standard_webhooks_has_it_and_an_attempt_keeps_its_id(key):
    with receiver() as server:
        channel = a_channel("webhook", schema.Webhook(url=server.url), {"signing_key": key})
        channel.send(message())
        channel.send(message())
        channel.send(message(state="resolved"))
    first, again, other = server.posts
    raw = base64.b64decode(key.removeprefix("whsec_")) if key.startswith("whsec_") else key.encode()
    signed = f"{first.headers['webhook-id']}.{first.headers['webhook-timestamp']}.".encode() + first.body
    wanted = "v1," + base64.b64encode(hmac.new(raw, signed, hashlib.sha256).digest()).decode()
    assert first.headers["webhook-signature"] == wanted
    assert abs(int(first.headers["webhook-timestamp"]) - time.time()) < 30
    assert first.headers["webhook-id"] == again.headers["webhook-id"] != other.headers["webhook-id"]


# --- TLS, redirects, secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OVER_HTTP)
def test_certificates_are_verified(name, certificate):
    with receiver(certificate.cert, certificate.key) as server:
        with pytest.raises(SendError, match="certificate is not accepted") as caught:
            over_http(name, server.url).send(message())
        assert not caught.value.is_final
        over_http(name, server.url, ca=certificate.cert.read_text()).send(message())
    assert len(server.posts) == 1


def test_a_certificate_of_another_name_is_refused(tmp_path):
    made = [
        "-keyout",
        tmp_path / "key",
        "-out",
        tmp_path / "cert",
        "-subj",
        "/CN=elsewhere",
        "-addext",
        "subjectAltName=DNS:elsewhere.example",
    ]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made], check=True, capture_output=True)
    with receiver(tmp_path / "cert", tmp_path / "key") as server:
        with pytest.raises(SendError, match="Hostname mismatch"):
            over_http("webhook", server.url, ca=(tmp_path / "cert").read_text()).send(message())
    assert server.posts == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status):
    with receiver() as server, receiver() as elsewhere:
        server.answers = [Answer(status, headers=(("Location", elsewhere.url + "/x"),))]
        with pytest.raises(SendError, match="not followed") as caught:
            over_http("webhook", server.url).send(message())
        assert caught.value.is_final
    assert elsewhere.posts == []


FAULTS = {
    "refuses": Answer(403, b"no, " + SECRET.encode() + b" " + KEY.encode()),
    "fails": Answer(500, b"\x00\x1b[31m" + b"x" * 1_000_000),
    "asks to wait": Answer(429, headers=(("Retry-After", "7"),)),
    "asks to wait for ever": Answer(503, headers=(("Retry-After", "9" * 400),)),
    "asks nonsense": Answer(503, headers=(("Retry-After", "-1"),)),
    "answers late": Answer(wait_s=1.0),
    "says nothing": Answer(204, b""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_without_the_secret(fault):
    settings = schema.Slack(timeout=0.4)
    with receiver() as server:
        server.answers = [FAULTS[fault]]
        channel = a_channel("slack", settings, {"webhook_url": f"{server.url}/services/{SECRET}"})
        raised = None
        try:
            channel.send(message())
        except SendError as caught:
            raised = caught
    if raised is None:
        assert fault == "says nothing"
        return
    assert "/services/" not in "".join(traceback.format_exception(raised))
    assert "\x1b" not in str(raised)
    assert len(str(raised)) < 400
    assert raised.is_final == (fault == "refuses")
    assert raised.retry_after == {"asks to wait": 7}.get(fault)
    assert SECRET not in repr(channel) + repr(vars(channel)["_http"])


@pytest.mark.parametrize("url", [f"http://127.0.0.1:1/{SECRET}", f"http://no-such-host.invalid/{SECRET}"])
def test_who_cannot_be_reached_is_said_without_the_address(url):
    channel = a_channel("slack", schema.Slack(timeout=2.0), {"webhook_url": url})
    with pytest.raises(SendError) as caught:
        channel.send(message())
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert str(caught.value) in ("connection refused", "its name is not known")


# --- templates --------------------------------------------------------------------------------------------------------------------


def test_a_template_of_the_users_is_what_is_sent_with_names_of_strangers_escaped():
    with receiver() as server:
        for name, template in {
            "slack": "*{{ alert.rule }}* on {{ alert.model }}",
            "teams": "{{ alert.rule }} on {{ alert.model }}",
            "webhook": '{"rule": "{{ alert.rule }}", "model": "{{ alert.model }}"}',
        }.items():
            over_http(name, server.url, template=template).send(message(model='<!here> "[x](y)'))
    slack, teams, webhook = (post.json for post in server.posts)
    assert slack["blocks"][1]["text"]["text"] == '*high_risk_prompt_injection* on &lt;!here&gt; "[x](y)'
    assert teams["attachments"][0]["content"]["body"][1]["text"] == r'high\_risk\_prompt\_injection on \<!here\> "\[x\]\(y\)'
    assert webhook == {"rule": "high_risk_prompt_injection", "model": '<!here> "[x](y)'}
    jsonschema.validate(slack, alert_schemas.SLACK)
    jsonschema.validate(teams, alert_schemas.TEAMS)


BROKEN = {
    "{{ alert.rule": "line 1",
    "{{ no_such }}": "no_such",
    "{{ alert.no_such.thing }}": "no_such",
    "{{ ''.__class__.__mro__ }}": "unsafe",
    "{% for a in range(10) %}{% endfor %}": "range",
    "   ": "it says nothing",
    "{{ 'x' * 20000 }}": "more than 16,000 characters",
    "{{ 1 / 0 }}": "ZeroDivisionError",
    "{% include '/etc/passwd' %}": "",
    "no json": "no JSON",
}


@pytest.mark.parametrize("template", BROKEN)
def test_a_broken_template_is_said_once_and_ours_is_sent(template):
    said = Said()
    with receiver() as server:
        channel = over_http("webhook", server.url, template=template, journal=said)
        channel.send(message())
        channel.send(message())
    for post in server.posts:
        jsonschema.validate(post.json, alert_schemas.WEBHOOK)
    (event,) = said.events
    assert event.name == "alert_template_refused"
    assert "alerting.channels.webhook.template" in event.text
    assert BROKEN[template] in event.text


# --- mail -------------------------------------------------------------------------------------------------------------------------


class Inbox:
    def __init__(self):
        self.mails = []
        self.answer = "250 OK"

    async def handle_DATA(self, server, session, envelope):
        self.mails.append((envelope, session.ssl is not None, session.authenticated))
        return self.answer


def mail_server(inbox, certificate, *, tls):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)

    def login(server, session, envelope, mechanism, data):
        return AuthResult(success=data.login == b"user" and data.password == SECRET.encode(), handled=False)

    class Server(Controller):
        def factory(self):
            return SMTP(inbox, hostname="localhost", tls_context=None if tls else context, authenticator=login, auth_require_tls=not tls)

        def _trigger_server(self):
            """Its own speaks no TLS to a certificate that it does not know."""
            with socket.create_connection((self.hostname, self.port)) as sock:
                speaking = ssl._create_unverified_context().wrap_socket(sock) if tls else sock
                with speaking:
                    speaking.recv(1024)

    return Server(inbox, hostname="127.0.0.1", port=free_port(), ssl_context=context if tls else None, ready_timeout=20)


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_mail_goes_over_tls_with_a_log_in_to_every_recipient(tls, certificate):
    inbox = Inbox()
    server = mail_server(inbox, certificate, tls=tls == "tls")
    server.start()
    try:
        settings = schema.Email(
            smtp_host="localhost",
            smtp_port=server.port,
            tls=tls,
            from_address="tap@example.com",
            to=("a@example.com", "b@example.com"),
            username="user",
        )
        secrets = {"password": SECRET}
        with pytest.raises(SendError, match="certificate is not accepted"):
            a_channel("email", settings, secrets).send(message())
        channel = a_channel("email", settings, secrets, ca=certificate.cert.read_text())
        channel.send(message(model=HOSTILE, summary=HOSTILE))
        (envelope, _, authenticated), *_ = inbox.mails
        assert envelope.rcpt_tos == ["a@example.com", "b@example.com"]
        assert authenticated
        import email
        from email.policy import default

        mail = email.message_from_bytes(envelope.content, policy=default)
        assert mail["Bcc"] is None
        assert mail["Subject"].startswith("[LLMSec Trace] Critical: ")
        assert mail["Message-ID"] == f"<{message(model=HOSTILE, summary=HOSTILE).uid}@example.com>"
        assert "Security score: 95" in mail.get_content()
        assert "p***" not in mail.get_content()
        inbox.answer = "554 too much"
        with pytest.raises(SendError, match="answered 554: too much") as caught:
            channel.send(message())
        assert caught.value.is_final
        with pytest.raises(SendError, match="log-in is refused") as caught:
            a_channel("email", settings, {"password": "wrong" + SECRET}, ca=certificate.cert.read_text()).send(message())
        assert SECRET not in "".join(traceback.format_exception(caught.value))
        html = a_channel("email", settings, secrets, template="<b>{{ alert.model }}</b>", ca=certificate.cert.read_text())
        inbox.answer = "250 OK"
        html.send(message(model="<script>"))
        mail = email.message_from_bytes(inbox.mails[-1][0].content, policy=default)
        assert "&lt;script&gt;" in mail.get_body(("html",)).get_content()
    finally:
        server.stop()


def test_a_mail_server_without_starttls_gets_nothing(certificate):
    inbox = Inbox()
    server = Controller(inbox, hostname="127.0.0.1", port=free_port(), ready_timeout=20)
    server.start()
    try:
        settings = schema.Email(smtp_host="localhost", smtp_port=server.port, from_address="tap@example.com", to=("a@example.com",))
        with pytest.raises(SendError, match="no STARTTLS"):
            a_channel("email", settings).send(message())
        assert inbox.mails == []
        plain = msgspec.structs.replace(settings, tls="none")
        a_channel("email", plain).send(message())
        assert len(inbox.mails) == 1
    finally:
        server.stop()


# --- syslog -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tls", "tcp", "udp"])
def test_syslog_is_read_by_a_strict_reader(transport, certificate):
    with syslog_server(transport, certificate.cert, certificate.key) as (port, messages):
        settings = schema.Syslog(host="localhost", port=port, transport=transport, facility="audit")
        channel = a_channel("syslog", settings, ca=certificate.cert.read_text())
        channel.send(message())
        channel.send(message(**dict.fromkeys(("summary", "model", "process", "tenant", "dedup_key", "rule", "alert_id", "node"), HOSTILE)))
        channel.send(resolved())
        deadline = time.monotonic() + 5
        while len(messages) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    first, hostile, last = messages
    assert (first.facility, first.severity, first.host, first.app, first.msgid) == (13, 2, "host-1", "llmsec-trace", "alert")
    assert first.timestamp == "2025-11-26T00:00:00.000000Z"
    assert first.data["dedup_key"] == "high_risk_prompt_injection:acme"
    assert first.text == "Critical: a prompt injection of security score 95"
    assert hostile.data["model"].startswith("<!channel> [x](http://evil)")
    assert (last.severity, last.data["state"]) == (6, "resolved")


def test_syslog_over_tls_verifies_the_certificate(certificate):
    with syslog_server("tls", certificate.cert, certificate.key) as (port, messages):
        with pytest.raises(SendError, match="certificate is not accepted"):
            a_channel("syslog", schema.Syslog(host="localhost", port=port)).send(message())
    assert messages == []


# --- others -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # within the library
def test_apprise_sends_to_what_its_address_says_and_keeps_the_secret(capfd):
    with receiver() as server:
        place = server.url.removeprefix("http://").replace("localhost", f"user:{SECRET}@localhost")
        channel = a_channel("apprise", schema.Apprise(), {"url": f"json://{place}/x"})
        channel.send(message())
        assert "high_risk_prompt_injection" in server.posts[0].json["message"]
        assert server.posts[0].json["type"] == "failure"
        with receiver() as elsewhere:
            for answer in (Answer(500), Answer(307, headers=(("Location", elsewhere.url),))):
                server.answers = [answer]
                with pytest.raises(SendError, match="apprise could not send it"):
                    channel.send(message())
        assert elsewhere.posts == []
    with pytest.raises(ConfigError, match="no address that apprise knows") as caught:
        a_channel("apprise", schema.Apprise(), {"url": f"nonsense://{SECRET}"})
    assert SECRET not in str(caught.value) + "".join(capfd.readouterr())


@pytest.mark.skipif(shutil.which("prometheus-alertmanager") is None, reason="prometheus-alertmanager is not installed (apt-get install)")
def test_alertmanager_takes_an_alert_and_its_end(tmp_path):
    port = free_port()
    (tmp_path / "am.yml").write_text("route: {receiver: none}\nreceivers: [{name: none}]\n")
    server = subprocess.Popen(
        [
            "prometheus-alertmanager", f"--config.file={tmp_path}/am.yml", f"--storage.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def active():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v2/alerts?active=true", timeout=5) as answer:
            return json.load(answer)

    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert active() == []
                break
            except OSError:
                time.sleep(0.1)
        channel = a_channel("alertmanager", schema.Alertmanager(url=f"http://127.0.0.1:{port}/"))
        now = time.time_ns()
        channel.send(message(at_ns=now - 10**9))
        (found,) = active()
        assert found["labels"]["alertname"] == "high_risk_prompt_injection"
        assert found["annotations"]["alert_id"] == "a1"
        channel.send(message(at_ns=now, state="resolved"))
        deadline = time.monotonic() + 5
        while active() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert active() == []
    finally:
        server.kill()
        server.wait()


# --- what the documentation says ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [SECRET, "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()])
def test_the_documented_verification_takes_what_is_ours_and_new_and_nothing_else(key):
    page = (Path(__file__).parents[3] / "docs/alerts-channels.md").read_text()
    names = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    verify = names["verify"]
    with receiver() as server:
        a_channel("webhook", schema.Webhook(url=server.url), {"signing_key": key}).send(message())
    (post,) = server.posts
    seen = set()
    assert verify(key, post.headers, post.body, seen)
    assert not verify(key, post.headers, post.body, seen)  # a replay
    assert not verify(key, post.headers, post.body + b" ", set())
    assert not verify(key + "x" if key == SECRET else SECRET, post.headers, post.body, set())
    later = {**post.headers, "webhook-timestamp": str(int(post.headers["webhook-timestamp"]) + 1)}
    assert not verify(key, later, post.body, set())
    old = "1500000000"
    signature = "v1," + sign(key_bytes(key), post.headers["webhook-id"], old, post.body)
    assert not verify(key, {**post.headers, "webhook-timestamp": old, "webhook-signature": signature}, post.body, set())


def test_the_documented_template_is_sent_as_it_is():
    page = (Path(__file__).parents[3] / "docs/alerts-channels.md").read_text()
    said = Said()
    with receiver() as server:
        over_http("slack", server.url, template=page.split("```jinja\n")[1].split("```")[0], journal=said).send(message())
    assert "critical inject.ignore_instructions" in server.posts[0].json["blocks"][1]["text"]["text"]
    assert said.events == []
