"""E-mail over SMTP, with STARTTLS or TLS; never in clear unless the configuration says so."""

from __future__ import annotations

import contextlib
import smtplib
import ssl
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Final

from llmsec_agent.alerting.channels.base import SendError
from llmsec_agent.alerting.channels.web import context
from llmsec_agent.alerting.message import Message, cut, short_id
from llmsec_agent.alerting.templates import Text
from llmsec_agent.config.channels import Email
from llmsec_tap.visible import visible

_IMPORTANCE: Final = {"critical": "high", "high": "high", "medium": "normal", "low": "low"}


class EmailChannel:
    """A connection for each message: alerts are few, and mail servers close what is quiet."""

    def __init__(self, settings: Email, text: Text, password: str | None, ca: str | None) -> None:
        self._settings = settings
        self._text = text
        self._password = password
        self._tls = context(ca)

    def send(self, message: Message) -> None:
        mail = self._mail(message)
        try:
            with contextlib.closing(self._connect()) as server:
                if self._settings.username is not None and self._password is not None:
                    server.login(self._settings.username, self._password)
                refused = server.send_message(mail, self._settings.from_address, list(self._settings.to))
                with contextlib.suppress(smtplib.SMTPException, OSError):
                    server.quit()
        except smtplib.SMTPRecipientsRefused as fault:
            codes = [code for code, _ in fault.recipients.values()]
            raise SendError("the server takes none of the recipients", is_final=all(code >= 500 for code in codes)) from None
        except smtplib.SMTPNotSupportedError:
            raise SendError("the server offers no STARTTLS, or no way to log in", is_final=True) from None
        except smtplib.SMTPAuthenticationError as fault:
            raise SendError(f"answered {fault.smtp_code}: the log-in is refused", is_final=fault.smtp_code >= 500) from None
        except smtplib.SMTPResponseException as fault:
            said = fault.smtp_error.decode("utf-8", "replace") if isinstance(fault.smtp_error, bytes) else str(fault.smtp_error)
            raise SendError(f"answered {fault.smtp_code}: {visible(said)[:200]}", is_final=500 <= fault.smtp_code < 600) from None
        except ssl.SSLCertVerificationError as fault:
            raise SendError(f"its certificate is not accepted: {fault.verify_message}") from None
        except TimeoutError:
            raise SendError("no answer in time") from None
        except (smtplib.SMTPException, OSError) as fault:
            raise SendError(f"the connection failed: {getattr(fault, 'strerror', None) or type(fault).__name__}") from None
        if refused:
            # Those who took it have it: a later attempt would send it to them twice.
            raise SendError(f"the server refuses {len(refused)} of {len(self._settings.to)} recipients", is_final=True)

    def _connect(self) -> smtplib.SMTP:
        settings = self._settings
        if settings.tls == "tls":
            return smtplib.SMTP_SSL(settings.smtp_host, settings.smtp_port, timeout=settings.timeout, context=self._tls)
        server = smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=settings.timeout)
        if settings.tls == "starttls":
            try:
                server.starttls(context=self._tls)
            except BaseException:
                server.close()
                raise
        return server

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage(policy=SMTP_POLICY)
        settings, domain = self._settings, self._settings.from_address.rpartition("@")[2]
        mail["Subject"] = cut(f"[LLMSec Trace] {message.title}", 200)
        mail["From"] = settings.from_address
        mail["To"] = ", ".join(settings.to)
        mail["Date"] = format_datetime(message.at)
        mail["Message-ID"] = f"<{message.uid}@{domain}>"
        # Of one subject: mail programs show them together.
        mail["References"] = f"<{short_id(message.alert.dedup_key).encode().hex()[:60]}@{domain}>"
        mail["Auto-Submitted"] = "auto-generated"
        mail["Importance"] = "normal" if message.is_resolved else _IMPORTANCE[message.alert.priority]
        own = self._text.of(message)
        if own is not None and own.lstrip().startswith("<"):
            mail.set_content(message.text)
            mail.add_alternative(own, subtype="html")
        else:
            mail.set_content(own if own is not None else message.text)
        return mail
