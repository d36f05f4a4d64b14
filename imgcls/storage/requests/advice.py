"""What to tell somebody whom a store refuses: each store has variables of its own.

In: a scheme. Out: words for the end of an error message. Invariant: nobody is told another
store's variables.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """The ways out at one store."""

    credentials: str
    """How to get in."""
    elsewhere: str
    """What a redirect, or the wrong region, means."""
    endpoint: str
    """Which variable leads to another server."""
    certificate: str
    """Which variable names a certificate authority of one's own."""


ADVICE = {
    "s3": Advice(
        credentials="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for"
        " temporary ones), or AWS_PROFILE, or run where an instance role or a web identity allows"
        " it",
        elsewhere="the bucket is in another region; set AWS_REGION",
        endpoint="AWS_ENDPOINT_URL",
        certificate="AWS_CA_BUNDLE",
    ),
    "gs": Advice(
        credentials="set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account, or run"
        " `gcloud auth application-default login`, or run where the instance's account allows it",
        elsewhere="the reply leads elsewhere; check GOOGLE_BASE_URL",
        endpoint="GOOGLE_BASE_URL",
        certificate="REQUESTS_CA_BUNDLE",
    ),
    "az": Advice(
        credentials="set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or"
        " AZURE_STORAGE_SAS_TOKEN, or run where a managed identity, a workload identity or"
        " `az login` allows it",
        elsewhere="the reply leads elsewhere; check AZURE_STORAGE_ENDPOINT",
        endpoint="AZURE_STORAGE_ENDPOINT",
        certificate="REQUESTS_CA_BUNDLE",
    ),
    "https": Advice(
        credentials="imgcls reads public objects, and those that ~/.netrc opens",
        elsewhere="the reply leads elsewhere; write the address that it leads to",
        endpoint="the address itself",
        certificate="SSL_CERT_FILE",
    ),
    "sftp": Advice(
        credentials="keys come from the agent and from ~/.ssh; try `sftp` with the same address",
        elsewhere="the reply leads elsewhere; write the address that it leads to",
        endpoint="~/.ssh/config",
        certificate="~/.ssh/known_hosts",
    ),
}
ADVICE["http"] = ADVICE["https"]

_URI = re.compile(rf"\b({'|'.join(ADVICE)})://")


def advice_for(what: str) -> Advice:
    """Return the advice for the store of the first URI in a text; S3's where there is none."""
    found = _URI.search(what)
    return ADVICE[found[1] if found else "s3"]
