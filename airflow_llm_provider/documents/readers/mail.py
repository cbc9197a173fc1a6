"""Mails: their headers, their text once, and their attachments."""

from __future__ import annotations

import dataclasses
import email.policy
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any, cast

from airflow_llm_provider.documents.content import Part, Unreadable, checked
from airflow_llm_provider.documents.readers import kinds
from airflow_llm_provider.documents.readers.html import read_html
from airflow_llm_provider.documents.readers.image import media_type_of
from airflow_llm_provider.documents.readers.rtf import read_rtf
from airflow_llm_provider.options import Reading

_HEADERS = ("From", "To", "Cc", "Date", "Subject")
_SIGNATURES = frozenset(
    {"application/pkcs7-signature", "application/x-pkcs7-signature", "application/pgp-signature"}
)
_ENCRYPTED = "a mail that is encrypted. Decrypt it."
_SMALL_PICTURE_BYTES = 20_000
_STUB = 10  # a plain text this many times shorter than the HTML only says that there is HTML


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """A file, or a mail, that is attached to a mail.

    Attributes:
        name: of the file; made up where the mail gives none.
        raw: the bytes; of a mail, the whole mail.
        is_picture_in_text: an image that stands within the text.
    """

    name: str
    raw: bytes
    is_picture_in_text: bool = False

    @property
    def is_small_picture(self) -> bool:
        """Tell a logo or an icon in the text, which is named and not sent."""
        return self.is_picture_in_text and len(self.raw) < _SMALL_PICTURE_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Mail:
    """What a reader of a mail sees.

    Attributes:
        headers: the lines of sender, recipients, date and subject.
        text: of the mail, once.
        attachments: in their order.
    """

    headers: tuple[str, ...]
    text: str
    attachments: tuple[Attachment, ...]

    def parts(self, reading: Reading) -> tuple[Part, ...]:
        """Return headers, text and attachments as parts; neighbouring texts are one part.

        An attachment that cannot be read is named, with the reason, and the others are read.
        """
        parts: list[Part] = []
        warnings: list[str] = []
        lines = [*self.headers, "", self.text]
        for number, attachment in enumerate(self.attachments, 1):
            found, note = _read_attachment(attachment, reading)
            lines += ["", f"Attachment: {attachment.name}{note}"]
            if note and not attachment.is_small_picture:
                warnings.append(f"attachment_not_read: {number}")
            for part in found:
                warnings += part.warnings
                if part.kind == "text":
                    lines.append(part.data)
                else:
                    parts += [Part(kind="text", data="\n".join(lines)), part]
                    lines = []
        if lines:
            parts.append(Part(kind="text", data="\n".join(lines)))
        checked("\n".join(part.data for part in parts if part.kind == "text"))
        return (dataclasses.replace(parts[0], warnings=tuple(warnings)), *parts[1:])


def _read_attachment(attachment: Attachment, reading: Reading) -> tuple[tuple[Part, ...], str]:
    if reading.attachments == "documents":
        return (), ""
    if attachment.is_small_picture:
        return (), " (a small picture in the text, left out)"
    try:
        return kinds.read_here(attachment.raw, attachment.name, reading), ""
    except Unreadable as error:
        return (), f" (not read: {error})"


def read_eml(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return a mail (.eml): its headers, its text once, and its attachments; see `Mail.parts`.

    Raises:
        Unreadable: it is not a mail, it is encrypted, or it is empty.
    """
    return eml(raw).parts(reading)


def read_msg(raw: bytes, reading: Reading) -> tuple[Part, ...]:
    """Return an Outlook item (.msg), like `read_eml`.

    Raises:
        Unreadable: it is broken or empty.
        ImportError: the extra `office` is not installed.
    """
    return msg(raw).parts(reading)


def eml(raw: bytes) -> Mail:
    """Return a mail in the internet's own format.

    Raises:
        Unreadable: it is not a mail, or it is encrypted.
    """
    message = email.message_from_bytes(raw, policy=email.policy.default)
    if not any(name in message for name in ("From", "To", "Subject", "Date", "Received", "Content-Type")):
        raise Unreadable("unreadable", "not a mail: it has no header such as From or Subject")
    return _mail(message)


def _mail(message: EmailMessage) -> Mail:
    texts: list[str] = []
    attachments: list[Attachment] = []
    _collect(message, texts, attachments, in_text=False)
    headers = tuple(f"{name}: {value}" for name in _HEADERS if (value := _header(message, name)))
    return Mail(headers=headers, text="\n".join(texts).strip("\r\n"), attachments=tuple(attachments))


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message.get(name, "")).split())
    # The standard library fails on some malformed headers; then the header is given as it is.
    except Exception:  # noqa: BLE001
        found = [value for key, value in message.raw_items() if key.lower() == name.lower()]
        return " ".join(str(found[0]).split()) if found else ""


def _collect(part: EmailMessage, texts: list[str], attachments: list[Attachment], *, in_text: bool) -> None:
    """Add the texts and attachments of one part of a message, in their order."""
    kind = part.get_content_type()
    if kind == "multipart/encrypted" or (
        kind.endswith("pkcs7-mime") and "signed" not in str(part.get_param("smime-type"))
    ):
        raise Unreadable("unreadable", _ENCRYPTED)
    if kind == "multipart/alternative":
        _collect_alternative(list(_children(part)), texts, attachments)
    elif kind == "message/delivery-status":
        # The reason why a mail came back is in headers of its own.
        texts += [child.as_string().strip() for child in _children(part)]
    elif part.is_multipart() and kind != "message/rfc822":
        for child in _children(part):
            _collect(child, texts, attachments, in_text=in_text or kind == "multipart/related")
    elif kind in _SIGNATURES:
        pass
    elif kind in ("text/plain", "text/html") and not _is_attached(part):
        texts.append(_text(part))
    else:
        raw = _bytes(part)
        name = part.get_filename() or _made_up_name(part, len(attachments) + 1)
        is_picture = in_text and part.get_content_maintype() == "image" and "Content-ID" in part
        attachments.append(Attachment(name=" ".join(name.split()), raw=raw, is_picture_in_text=is_picture))


def _collect_alternative(
    children: list[EmailMessage], texts: list[str], attachments: list[Attachment]
) -> None:
    """Add the text of the alternatives once; all of them together give the attachments."""
    found: list[str] = []
    for child in children:
        of_child: list[str] = []
        _collect(child, of_child, attachments, in_text=True)
        found.append("\n".join(of_child).strip())
    plain = next(
        (
            text
            for child, text in zip(children, found, strict=True)
            if child.get_content_type() == "text/plain"
        ),
        "",
    )
    longest = max(found, key=len, default="")
    texts.append(plain if plain and len(plain) * _STUB >= len(longest) else longest)


def _children(part: EmailMessage) -> Iterator[EmailMessage]:
    payload = part.get_payload()
    return iter(cast("list[EmailMessage]", payload) if isinstance(payload, list) else [])


def _is_attached(part: EmailMessage) -> bool:
    return part.get_content_disposition() == "attachment" or part.get_filename() is not None


def _bytes(part: EmailMessage) -> bytes:
    if part.get_content_type() == "message/rfc822":
        return b"".join(bytes(child) for child in _children(part))
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _made_up_name(part: EmailMessage, position: int) -> str:
    import mimetypes

    kind = part.get_content_type()
    suffix = ".eml" if kind == "message/rfc822" else mimetypes.guess_extension(kind) or ""
    return f"attachment {position}{suffix}"


def _text(part: EmailMessage) -> str:
    raw = _bytes(part)
    charset = part.get_content_charset() or "utf-8"
    if part.get_content_type() == "text/html":
        return _text_of_html(raw, charset)
    try:
        text = raw.decode(charset)
    except (LookupError, UnicodeDecodeError):
        # A mail states a wrong charset more often than any other file does; Windows' own can show any byte.
        text = raw.decode("cp1252", errors="replace")
    return text.replace("\r\n", "\n")


def _text_of_html(raw: bytes, charset: str) -> str:
    try:
        return read_html(raw, Reading(encoding=charset))[0].data
    except (Unreadable, ValueError) as error:
        if isinstance(error, Unreadable) and error.reason == "empty":
            return ""
        return read_html(raw, Reading(encoding="cp1252"))[0].data


# Outlook's items, by the numbers of their properties: [MS-OXPROPS], in OLE files laid out by [MS-OXMSG].
_SUBJECT, _SENDER, _CC, _TO = 0x0037, 0x0C1A, 0x0E03, 0x0E04
_SENDER_ADDRESSES = (0x5D01, 0x0C1F)
_SENT, _DELIVERED, _BODY = 0x0039, 0x0E06, 0x1000
_RTF, _HTML = 0x1009, 0x1013
_NAME, _SHORT_NAME, _CONTENT_ID = 0x3001, 0x3704, 0x3712
_HEADER_BYTES, _INNER_HEADER_BYTES = 32, 24
_INNER_ITEM = "__substg1.0_3701000D"


def msg(raw: bytes) -> Mail:
    """Return an Outlook item.

    Raises:
        Unreadable: it is broken.
        ImportError: the extra `office` is not installed.
    """
    from olefile import OleFileIO  # type: ignore[import-untyped]
    from oxmsg.storage import Storage

    try:
        with OleFileIO(raw) as ole:
            return _outlook_mail(Storage.from_ole(ole), _HEADER_BYTES)
    except (Unreadable, ImportError):
        raise
    except Exception as error:  # noqa: BLE001 - olefile and oxmsg pass on errors of struct, and KeyErrors
        raise Unreadable(
            "unreadable", f"an Outlook item (.msg) that is broken ({type(error).__name__})"
        ) from None


def _outlook_mail(storage: Any, header_bytes: int) -> Mail:
    from oxmsg.properties import Properties

    properties = Properties(storage, properties_header_offset=header_bytes)
    sender, addresses = properties.str_prop_value(_SENDER), map(properties.str_prop_value, _SENDER_ADDRESSES)
    address = next(filter(None, addresses), None)
    sent = properties.date_prop_value(_SENT) or properties.date_prop_value(_DELIVERED)
    values = {
        "From": " ".join(filter(None, (sender, f"<{address}>" if address else None))),
        "To": properties.str_prop_value(_TO),
        "Cc": properties.str_prop_value(_CC),
        "Date": sent.isoformat(" ") if sent else None,
        "Subject": properties.str_prop_value(_SUBJECT),
    }
    return Mail(
        headers=tuple(f"{name}: {' '.join(value.split())}" for name, value in values.items() if value),
        text=_outlook_text(properties),
        attachments=tuple(
            _outlook_attachment(each, index)
            for index, each in enumerate(storage.iter_attachment_storages(), 1)
        ),
    )


def _outlook_text(properties: Any) -> str:
    """Return the text of an item, which may be stored as plain text, as HTML or as RTF alone."""
    plain = (properties.str_prop_value(_BODY) or "").replace("\r\n", "\n").strip()
    if plain:
        return str(plain)
    html = properties.binary_prop_value(_HTML)
    if html:
        return _text_of_html(html, properties.body_encoding)
    rtf = properties.binary_prop_value(_RTF)
    if rtf:
        from compressed_rtf import decompress  # type: ignore[import-untyped]

        try:
            return read_rtf(decompress(rtf), Reading())[0].data
        except Unreadable as error:
            if error.reason != "empty":
                raise
    return ""


def _outlook_attachment(storage: Any, position: int) -> Attachment:
    from oxmsg.attachment import Attachment as OutlookAttachment

    found = OutlookAttachment(storage)
    properties = found.properties
    names = (
        found.file_name,
        properties.str_prop_value(_SHORT_NAME),
        properties.str_prop_value(_NAME),
    )
    name = next(filter(None, names), f"attachment {position}")
    inner = next((each for each in storage.storages if each.name == _INNER_ITEM), None)
    if inner is not None:
        return Attachment(name=f"{name}.eml", raw=_as_eml(_outlook_mail(inner, _INNER_HEADER_BYTES)))
    return Attachment(
        name=name,
        raw=found.file_bytes or b"",
        is_picture_in_text=bool(properties.str_prop_value(_CONTENT_ID))
        and media_type_of(found.file_bytes or b"") is not None,
    )


def _as_eml(mail: Mail) -> bytes:
    """Return an item that is attached to another in the internet's format, which can be a document of its own."""
    message = EmailMessage(policy=email.policy.SMTPUTF8)
    for header in mail.headers:
        name, _, value = header.partition(": ")
        message[name] = value
    message.set_content(mail.text)
    for each in mail.attachments:
        message.add_attachment(each.raw, maintype="application", subtype="octet-stream", filename=each.name)
    return bytes(message)
