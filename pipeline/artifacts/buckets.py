"""Buckets: from a URI to a connection to S3 or Google Cloud Storage.

    s3://[KEY:SECRET@]BUCKET[/PATH][?region=..&scheme=..&endpoint_override=..&anonymous=true]
    gs://BUCKET[/PATH][?scheme=..&endpoint_override=..&anonymous=true]

`endpoint_override` is the HOST:PORT of another server, and `scheme` is its http or https. The
options are named as those of pyarrow.fs. Without a key, credentials are those of the environment.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from obstore.store import GCSStore, S3Store

from pipeline.process.addresses import is_loopback

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Credential

SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs"}

OPTIONS = {
    "s3": ("region", "scheme", "endpoint_override", "anonymous"),
    "gs": ("scheme", "endpoint_override", "anonymous"),
}

ENDPOINT_VARIABLES = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}

DEFAULT_REGION = "us-east-1"

AWS_URL = "https://s3.amazonaws.com"
"""Knows the region of every bucket."""

BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

TIMEOUTS: ClientConfig = {"connect_timeout": "5s", "read_timeout": "10s", "timeout": "1h"}
"""To connect, to send a request and until each packet of the reply, and for all of it."""

UPLOAD_TIMEOUTS: ClientConfig = {"read_timeout": "5m"}
"""For large uploads, because the time to send them counts too, and a link may be slow."""

RETRIES: RetryConfig = {
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"max_backoff": timedelta(seconds=3)},
}
"""With the timeouts: a server that does not answer is an error within 30 s."""

CREDENTIALS_LIFE = timedelta(minutes=2)
"""Time after which credentials are asked for again, because others may have replaced them."""

REFRESHED_EARLY = timedelta(minutes=5)
"""obstore asks for new credentials this long before the old ones expire."""


class Bucket(NamedTuple):
    """A bucket, and how it is reached."""

    scheme: str
    name: str
    keys: tuple[str, str] | None
    options: tuple[tuple[str, str], ...]


def parse(uri: str) -> tuple[Bucket, str]:
    """Return the bucket of a URI, and its path in the bucket.

    Raise ValueError, whose text holds no credentials.
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in SCHEMES:
        raise ValueError("the schemes are file, s3 and gs")
    # A path may hold characters that urlsplit would take for its end, such as #.
    location, _, query = rest.partition("?")
    host, _, path = location.partition("/")
    login, separator, name = host.rpartition("@")
    if not BUCKET.fullmatch(name):
        raise ValueError("it names no bucket; a / in a key is written %2F")
    options = dict(parse_qsl(query, keep_blank_values=True))
    scheme = SCHEMES[scheme]
    for option in options:
        if option not in OPTIONS[scheme]:
            raise ValueError(f"its options are {', '.join(OPTIONS[scheme])}")
    key, colon, secret = login.partition(":")
    keys = (unquote(key), unquote(secret)) if colon else None
    if login == "anonymous":
        options["anonymous"] = "true"
    elif separator and (not keys or scheme == "gs"):
        raise ValueError("before @ stands KEY:SECRET for s3, and nothing for gs")
    return Bucket(scheme, name, keys, tuple(options.items())), unquote(path).strip("/")


@functools.cache
def connect(bucket: Bucket, *, upload: bool = False) -> S3Store | GCSStore:
    """Return the connection to a bucket, for large uploads or all else; it may ask AWS for the
    region.
    """
    options = dict(bucket.options)
    names = ENDPOINT_VARIABLES[bucket.scheme]
    endpoint = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if "endpoint_override" in options:
        endpoint = f"{options.get('scheme', 'https')}://{options['endpoint_override']}"
    client = TIMEOUTS | UPLOAD_TIMEOUTS if upload else TIMEOUTS.copy()
    if endpoint:
        client |= _client_options(endpoint)
    config: dict[str, Any] = {"client_options": client, "retry_config": RETRIES}
    anonymous = options.get("anonymous") == "true"
    if anonymous:
        config["skip_signature"] = True
    if bucket.scheme == "gs":
        if anonymous:
            # Writes ask for a token all the same (apache/arrow-rs-object-store#520).
            config["bearer_token"] = "anonymous"
        if endpoint:
            config["base_url"] = endpoint
        return GCSStore(bucket.name, **config)
    if endpoint:
        config["endpoint"] = endpoint
    if not anonymous:
        config["credential_provider"] = functools.partial(_aws_credentials, bucket.keys)
    region = options.get("region") or _configured_region()
    config["region"] = region or (DEFAULT_REGION if endpoint else _ask_region(bucket.name))
    # Other servers than Amazon's do not all have the request that deletes several files.
    return S3Store(bucket.name, disable_bulk_delete=True, **config)


def _client_options(endpoint: str) -> ClientConfig:
    parts = urlsplit(endpoint)
    options: ClientConfig = {"allow_http": parts.scheme == "http"}
    host = parts.hostname or ""
    if is_loopback(host):
        # A proxy of the environment could not reach it. Given here, it is one that excludes it.
        options |= {"proxy_url": endpoint, "proxy_excludes": host}
    return options


def _aws_credentials(keys: tuple[str, str] | None) -> S3Credential:
    """Return the keys of the URI, or those that the tools of AWS would use now."""
    if keys:
        return {"access_key_id": keys[0], "secret_access_key": keys[1], "expires_at": None}
    credentials = _ask_botocore(lambda session: session.get_credentials())
    if credentials is None:
        raise ValueError(
            "no AWS credentials were found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE, or add ?anonymous=true for a public bucket"
        )
    frozen = credentials.get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + CREDENTIALS_LIFE + REFRESHED_EARLY,
    }


def _configured_region() -> str | None:
    region: str | None = os.environ.get("AWS_REGION") or _ask_botocore(
        lambda session: session.get_config_variable("region")
    )
    return region


def _ask_botocore(question: Callable[[Any], Any]) -> Any:
    """Return the answer of the tools of AWS. Raise ValueError if their settings are wrong."""
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    try:
        # A new session reads files again, so it finds keys that somebody has replaced.
        return question(Session())
    except BotoCoreError as error:
        raise ValueError(str(error)) from None


def _ask_region(name: str) -> str:
    """Return the region of a bucket of AWS, which tells it to everybody."""
    import httpx

    try:
        reply = httpx.head(f"{AWS_URL}/{name}", timeout=5)
    except httpx.HTTPError:
        return DEFAULT_REGION
    return str(reply.headers.get("x-amz-bucket-region", DEFAULT_REGION))
