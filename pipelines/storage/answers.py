"""What an object store, or the network on the way to it, answers instead of what was asked for, in plain words."""

import re

from pipelines.addresses import Address
from pipelines.fields import redacted
from pipelines.units import format_seconds

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, where they have one, AWS_SESSION_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
    "web": "storage_options: {bearer_token: ${NAME}}",
}
"""Where the credentials of each kind of store stand."""

NO_CREDENTIALS = r"169\.254\.\d|metadata\.google"
"""Where stores of a cloud look for credentials when none are given."""
ADVICE = {
    NO_CREDENTIALS: (
        "Set {credentials} where the job and its workers run, or, for what is public, "
        "storage_options: {{skip_signature: true}}"
    ),
    "ExpiredToken|TokenRefreshRequired|[Ee]xpired": (
        "Renew the credentials ({credentials}) where the job and its workers run, and run the job again"
    ),
    "InvalidAccessKeyId|InvalidToken|InvalidAuthenticationInfo|code: 401": (
        "It does not know these credentials: check {credentials}, and that its address is the one that they are for"
    ),
    "SignatureDoesNotMatch|AuthenticationFailed": (
        "The secret does not belong to the key: check {credentials}, all from the same place"
    ),
    "RequestTimeTooSkewed": "Set the clock of this machine right",
    "PermanentRedirect|incorrectly configured region|AuthorizationHeaderMalformed": (
        "Give the region of the bucket: storage_options: {{region: ...}}, or AWS_REGION"
    ),
    "AccessDenied|AuthorizationFailure|code: 403": (
        "What was given does not allow this: ask its owner for the right, or use other credentials ({credentials})"
    ),
    "SlowDown|TooManyRequests|ServerBusy|code: (429|503)": (
        "Run the job again when it has less to do, or with fewer workers"
    ),
    "InvalidCertificate": (
        "Give the certificate that its own is signed with: storage_options: {{root_certificate: ca.pem}}"
    ),
    "NoSuchBucket|ContainerNotFound": "Check its name, or make it",
    "": "Check its address, and that it runs, and run the job again",
}
"""What to do, by what is found in an answer; the first that is found counts."""
CAUSES = (
    ("InvalidCertificate", "its certificate is not trusted here"),
    ("dns error|ResolveError", "the name of its host is not known"),
    ("ConnectionRefused", "nothing listens there"),
    ("TimedOut|kind: Timeout", "it did not answer in time"),
    ("Incomplete|ConnectionReset|Interrupted|BrokenPipe", "the connection was dropped"),
)
"""What is meant by the insides of an error of the network."""


class StoreError(Exception):
    """Why an object store does not do what it is asked, and what can be done, in sentences."""

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text, key)
        self.text, self.key = text, key

    def __str__(self) -> str:
        return self.text


def may_pass(said: str) -> bool:
    """Whether the same request may succeed later."""
    if re.search(NO_CREDENTIALS, said):
        return False
    status = re.search(r"status code: (\d+)", said)
    if status is None:
        return "HTTP error" in said and "InvalidCertificate" not in said
    return status[1] in ("408", "429", "500", "502", "503", "504") or "<Code>RequestTimeout</Code>" in said


def letter_of(address: Address, said: str, tries: int, seconds: float) -> str:
    """What the store answered, how long it was tried, and what to do."""
    often = f" ({tries} times in {format_seconds(seconds)})" if tries > 1 else ""
    often = often or (f" (asked for {format_seconds(seconds)})" if seconds >= 1 else "")
    advice = next(text for pattern, text in ADVICE.items() if re.search(pattern, said))
    credentials = CREDENTIALS[address.store or "s3"]
    return f"{_answer(said)}{often}. {advice.format(credentials=credentials)}."


def _answer(said: str) -> str:
    if re.search(NO_CREDENTIALS, said):
        return "no credentials were found"
    status = re.search(r"status code: (\d+ [\w ]+)", said)
    if status is None:
        return "the store cannot be reached: " + next(
            (meaning for pattern, meaning in CAUSES if re.search(pattern, said)), first_line(ValueError(said))
        )
    code, message = re.search("<Code>([^<]+)</Code>", said), re.search("<Message>([^<]+)</Message>", said)
    words = [status[1], code and code[1], message and message[1].rstrip(".")]
    return f"the store answered {', '.join(redacted(word) for word in words if word)}"


def first_line(error: BaseException) -> str:
    """What an error says first, without its full stop; of an object store's answer, the message in it."""
    text = str(error).strip() or type(error).__name__
    message = re.search("<Message>([^<]+)</Message>", text)
    return redacted(message[1] if message else text.splitlines()[0]).rstrip(".")
