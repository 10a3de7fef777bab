"""A private authority for one cluster, and the certificates that it signs: who has none of them is refused by the rest.

Scheduler and workers serve and call each other; a client only calls; the server of jobs only serves, so what it holds
for its own port opens no port of Dask's.  Needs the package cryptography (the extra `tls`).
"""

import ipaddress
import os
import re
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pipelines.errors import JobFileError, RunFailed

CALLS, SERVES = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
ROLES = {"client": [CALLS], "scheduler": [SERVES, CALLS], "worker": [SERVES, CALLS], "server": [SERVES]}
"""Who gets a certificate, and what it is good for."""
AUTHORITY = timedelta(days=3650)
"""How long an authority lives; no certificate outlives it."""
EARLIER = timedelta(hours=1)
"""Certificates begin so long ago: clocks of other machines may be behind."""
SOON_DAYS = 30
"""So long before its end a certificate should be renewed."""
_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)


@dataclass(frozen=True)
class Made:
    """What was made."""

    hosts: list[str]
    """Names and addresses under which the certificates of scheduler, worker and server may be met."""
    until: datetime
    """Their end."""
    authority_until: datetime
    """The end of the authority."""


def make(folder: Path, hosts: Sequence[str], days: int, now: datetime | None = None) -> Made:
    """A folder (0700) with a new authority: ca.pem, and for each role ROLE.pem; keys are ROLE-key.pem (0600).

    It appears whole or not at all.  Without hosts, the names of this machine.

    Raises:
        JobFileError: there is something in the folder, or a host can be no name.
        RunFailed: the folder cannot be written.
    """
    names = _names(hosts)
    authority = _new_authority(now or datetime.now(UTC))
    with _appearing(folder) as hidden:
        _write(hidden, "ca", authority.key, authority.certificate)
        return _sign_all(hidden, authority, names, days)


def renew(folder: Path, hosts: Sequence[str], days: int, now: datetime | None = None) -> Made:
    """New keys and certificates by the authority that is there; without hosts, for those of the old ones.

    Raises:
        JobFileError: there is no authority, or it has ended.
        RunFailed: the folder cannot be written.
    """
    authority = _authority_in(folder, now or datetime.now(UTC))
    names = _names(hosts or _hosts_of(folder / "server.pem"))
    with _told(folder), _hidden(folder, "renewed") as hidden:
        made = _sign_all(hidden, authority, names, days)
        for file in sorted(hidden.iterdir()):
            _replace(folder / file.name, file)
    return made


def _replace(file: Path, new: Path) -> None:
    """The new file in the place of the old one, and whose that was: root may have given it to a service."""
    if file.exists() and os.getuid() == 0:
        os.chown(new, file.stat().st_uid, file.stat().st_gid)
    new.replace(file)


def days_left(file: str | Path, now: datetime | None = None) -> float:
    """Days until a certificate ends; negative when it has ended.

    Raises:
        JobFileError: the file holds no certificate.
    """
    return (_read(Path(file)).not_valid_after_utc - (now or datetime.now(UTC))) / timedelta(days=1)


@dataclass(frozen=True)
class _Authority:
    """Who signs, and when."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    now: datetime


def _new_authority(now: datetime) -> _Authority:
    key = _new_key()
    # A name of its own, so that the authorities of two clusters are not taken for each other.
    name = _called(f"Tallgrass cluster {secrets.token_hex(4)}, {now:%Y-%m-%d}")
    signs = _usage("key_cert_sign", "crl_sign")
    certificate = (
        _builder(name, name, key, key, now, now + AUTHORITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .sign(key, SHA256())
    )
    return _Authority(key, certificate, now)


def _authority_in(folder: Path, now: datetime) -> _Authority:
    certificate = _read(folder / "ca.pem")
    key_file = folder / "ca-key.pem"
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise JobFileError(
            f"{key_file} cannot be read ({_why(error, 'no private key')}); needed the key of ca.pem. Put it back."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise JobFileError(f"{key_file} is not the key of ca.pem beside it. Put the right one back.")
    if certificate.not_valid_after_utc <= now:
        raise JobFileError(
            f"The authority in {folder} has ended on {certificate.not_valid_after_utc:%Y-%m-%d}. Make a new one, "
            "tallgrass certs NEW-FOLDER, and give its files to scheduler, workers and clients."
        )
    return _Authority(key, certificate, now)


def _sign_all(folder: Path, authority: _Authority, hosts: list[str], days: int) -> Made:
    """A key and a certificate for each role, as files in the folder."""
    end = authority.certificate.not_valid_after_utc
    until = min(authority.now + timedelta(days=days), end)
    for role in ROLES:
        key = _new_key()
        _write(folder, role, key, _signed(role, key, authority, hosts, until))
    return Made(hosts, until, end)


def _signed(
    role: str, key: ec.EllipticCurvePrivateKey, authority: _Authority, hosts: list[str], until: datetime
) -> x509.Certificate:
    issuer = authority.certificate.subject
    builder = (
        _builder(_called(f"Tallgrass {role}"), issuer, key, authority.key, authority.now, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(ROLES[role]), critical=False)
    )
    if SERVES in ROLES[role]:
        names = [x509.IPAddress(ipaddress.ip_address(h)) if _is_address(h) else x509.DNSName(h.lower()) for h in hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority.key, SHA256())


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    own: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    """What every certificate says; Python's strict verification wants the identifiers of both keys."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())  # what Dask, strict verification and browsers all accept


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in _USAGES})


def _names(hosts: Sequence[str]) -> list[str]:
    """These hosts, or what this machine calls itself; and as it is reached from itself."""
    for host in hosts:
        if not (_is_address(host) or _is_name(host)):
            raise JobFileError(
                f'--host: found "{host[:100]}"; needed a name or an address, such as scheduler.example or 10.0.0.1'
            )
    ours = [name for name in (socket.gethostname(), socket.getfqdn()) if _is_name(name)]
    return list(dict.fromkeys([*(hosts or ours), "localhost", "127.0.0.1", "::1"]))


def _is_name(host: str) -> bool:
    return len(host) < 254 and _NAME.fullmatch(host) is not None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _hosts_of(file: Path) -> list[str]:
    names = _read(file).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def _read(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise JobFileError(
            f"{file} cannot be read ({_why(error, 'no certificate in PEM format')}); needed one that `tallgrass certs` "
            "made."
        ) from error


def _why(error: Exception, otherwise: str) -> str:
    return getattr(error, "strerror", None) or otherwise


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder that becomes this one at the end, where there is none or an empty one."""
    with _told(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise JobFileError(
                f"{folder} is there and not empty, and nothing is overwritten. Name a new folder; or let the authority "
                f"in it sign anew: tallgrass certs {folder} --renew"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _hidden(folder.parent, folder.name) as hidden:
            yield hidden
            hidden.rename(folder)


@contextmanager
def _hidden(parent: Path, name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(f"{folder} cannot be written: {error.strerror}. Name another folder.") from error


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content, mode in (
        (f"{name}-key.pem", pem, 0o600),
        (f"{name}.pem", certificate.public_bytes(Encoding.PEM), 0o644),
    ):
        with os.fdopen(os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(content)
