"""Encryption between a client and a server, as the client sees it: whom it trusts, and letters where it does not."""

import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from pipelines.errors import ClusterUnreachable, JobFileError

PROBE_SECONDS = 2.0
"""Time to find out whether a server that hangs up would have liked encryption."""
NOT_SIGNED, ENDED, OTHER_NAME = {18, 19, 20, 21}, {10}, {62, 64}
"""What OpenSSL calls the ways in which a certificate fails."""


class NotTrusted(ClusterUnreachable):
    """Something answers, and client and server do not agree on encryption: asking again will not help."""


def context(ca: str) -> ssl.SSLContext:
    """Trust in what the authority in this file has signed, and in nothing else.

    Raises:
        JobFileError: the file is none.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError too
        why = "no certificate in PEM format" if isinstance(error, ssl.SSLError) else error.strerror
        raise JobFileError(
            f"TALLGRASS_CA: {ca} cannot be read ({why}); needed the ca.pem of who runs the server (`tallgrass certs`)."
        ) from error


def mistrust(url: str, error: Exception) -> NotTrusted | None:
    """The letter, when a request to this address failed for want of trust, or of encryption on one side."""
    failed = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
    if isinstance(failed, ssl.SSLCertVerificationError):
        return NotTrusted(f"The server at {url} is not trusted: {_why(failed)}")
    if failed is not None and failed.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return NotTrusted(f"The server at {url} does not encrypt. Write http:// in its address.")
    if failed is None and url.startswith("http://") and _encrypts(url):
        return NotTrusted(f"The server at {url} encrypts. Write https:// in its address.")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _why(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in NOT_SIGNED:
        return (
            "its certificate is signed by no authority that this client knows. Set TALLGRASS_CA to the right ca.pem, "
            "and get that from who runs the server."
        )
    if error.verify_code in ENDED:
        return "its certificate has ended. Renew it (tallgrass certs FOLDER --renew) and restart the server."
    if error.verify_code in OTHER_NAME:
        return (
            f"{error.verify_message.rstrip('.')}. Use a name that it has, or give it this one: "
            "tallgrass certs FOLDER --renew --host NAME."
        )
    return f"{error.verify_message}. Get a certificate that holds."


def _encrypts(url: str) -> bool:
    """Whether a server answers to the first words of TLS."""
    place = urlsplit(url)
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    probe.check_hostname, probe.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((place.hostname or "", place.port or 80), PROBE_SECONDS) as connection:
            probe.wrap_socket(connection).close()
    except (OSError, ValueError):
        return False
    return True
