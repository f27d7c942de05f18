"""How to reach the brokers: one set of settings, and what each Kafka client must be told.

Three clients talk to Kafka: Faust's (aiokafka, configured by way of Faust), aiokafka itself, and
kafka-python for topic administration. All three are given the same TLS context.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import aiokafka.errors
import faust
import msgspec
from aiokafka.conn import create_conn
from aiokafka.protocol.metadata import MetadataRequest
from yarl import URL

from streamproc.config import Config
from streamproc.errors import BrokerAuthFailed, BrokerError, BrokerUnreachable, InvalidConnection

#: Called before each new attempt: number of the attempt that failed, seconds till the next, the reason.
OnRetry: TypeAlias = Callable[[int, float, str], None]

SecurityProtocol: TypeAlias = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism: TypeAlias = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

#: How old what a client knows of topics may be: a topic or a partition that is new is found within this, and not
#: within the clients' own five minutes.
METADATA_MAX_AGE_MS = 5_000

_DEFAULT_PORT = 9092
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 5.0
_ATTEMPT_S = 5.0


class Secret(str):
    """A string that does not show in a repr: kafka-python logs the repr of all it is given at DEBUG.

    msgspec refuses to encode it, so it does not slip into a dump of the configuration either.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class _NoSaslBytes(logging.Filter):
    """Drops what the clients log of authentication at DEBUG: with PLAIN, the password as it goes out.

    aiokafka and kafka-python log each request; kafka-python's parser also the bytes of it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "auth_bytes" not in text and "Send: bytearray" not in text


for _name in ("aiokafka.conn", "kafka.net.connection", "kafka.protocol.parser"):
    logging.getLogger(_name).addFilter(_NoSaslBytes())


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """The brokers, and how they know us and we know them.

    Parameters
    ----------
    brokers
        "host:port,host:port" or a list of "host:port"; a leading `kafka://` is allowed and the port is
        9092 where none is given. Kept as a tuple.
    sasl_mechanism
        SCRAM-SHA-512 where the protocol is SASL_… and none is named.
    ssl_cafile
        PEM; the system's authorities without it.
    ssl_certfile, ssl_keyfile
        PEM; our own certificate, where brokers ask for one (mutual TLS).
    ssl_check_hostname
        False still checks the certificate, against `ssl_cafile`, only not the name in it.

    Raises
    ------
    InvalidConnection
        where settings contradict each other.
    """

    brokers: str | tuple[str, ...]
    security_protocol: SecurityProtocol = "PLAINTEXT"
    sasl_mechanism: SaslMechanism | None = None
    username: str | None = None
    password: str | None = None
    ssl_cafile: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_check_hostname: bool = True
    client_id: str = "streamproc"

    def __post_init__(self) -> None:
        force = msgspec.structs.force_setattr
        force(self, "brokers", _addresses(self.brokers))
        sasl = self.security_protocol.startswith("SASL_")
        if sasl and (self.username is None or self.password is None):
            raise InvalidConnection(f"security_protocol {self.security_protocol} needs username and password")
        if not sasl and (self.sasl_mechanism or self.username or self.password):
            raise InvalidConnection(
                f"username, password and sasl_mechanism have no meaning with security_protocol "
                f"{self.security_protocol}; did you mean SASL_SSL?"
            )
        if sasl and self.sasl_mechanism is None:
            force(self, "sasl_mechanism", "SCRAM-SHA-512")
        if self.password is not None:
            force(self, "password", Secret(self.password))
        if not self.tls and (self.ssl_cafile or self.ssl_certfile or self.ssl_keyfile):
            raise InvalidConnection(
                f"ssl_cafile, ssl_certfile and ssl_keyfile have no meaning with security_protocol "
                f"{self.security_protocol}; did you mean {'SASL_SSL' if sasl else 'SSL'}?"
            )
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise InvalidConnection("ssl_keyfile is given without ssl_certfile")

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.security_protocol in ("SSL", "SASL_SSL")

    @property
    def bootstrap(self) -> str:
        """The brokers as one string, for messages and for clients that want it so."""
        return ",".join(self.brokers)


def connection(config: Config) -> Connection:
    """Return how the config reaches the brokers."""
    k = config.kafka
    return Connection(
        brokers=tuple(k.broker_list()),
        security_protocol=k.security_protocol,
        sasl_mechanism=k.sasl_mechanism,
        username=k.username,
        password=k.password,
        ssl_cafile=k.ssl_cafile,
        ssl_certfile=k.ssl_certfile,
        ssl_keyfile=k.ssl_keyfile,
        ssl_check_hostname=k.ssl_check_hostname,
        client_id=k.app_id,
    )


def for_faust(conn: Connection) -> dict[str, Any]:
    """Return the arguments of `faust.App` that concern the connection."""
    settings: dict[str, Any] = {
        "broker": [URL(f"kafka://{address}") for address in conn.brokers],
        "broker_client_id": conn.client_id,
    }
    # Faust tells SASL_PLAINTEXT from SASL_SSL by whether there is a context (faust/auth.py).
    context = tls_context(conn)
    if conn.sasl_mechanism is not None:
        settings["broker_credentials"] = faust.SASLCredentials(
            username=conn.username,
            password=conn.password,
            mechanism=conn.sasl_mechanism,
            ssl_context=context,
        )
    elif context is not None:
        settings["broker_credentials"] = faust.SSLCredentials(context)
    return settings


def for_aiokafka(conn: Connection) -> dict[str, Any]:
    """Return the arguments of aiokafka's producer, consumer and admin client."""
    return {
        "bootstrap_servers": list(conn.brokers),
        "client_id": conn.client_id,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        **_security(conn),
    }


def for_kafka_python(conn: Connection) -> dict[str, Any]:
    """Return the arguments of kafka-python's clients."""
    return {"bootstrap_servers": list(conn.brokers), "client_id": conn.client_id, **_security(conn)}


def tls_context(conn: Connection) -> ssl.SSLContext | None:
    """Make the TLS context of a connection; None where it is not encrypted."""
    if not conn.tls:
        return None
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        path = getattr(conn, name)
        if path is not None and not Path(path).is_file():
            raise InvalidConnection(f"{name}: there is no file {path}")
    try:
        context = ssl.create_default_context(cafile=conn.ssl_cafile)
    except ssl.SSLError as error:
        raise InvalidConnection(
            f"ssl_cafile: {conn.ssl_cafile} holds no PEM certificates ({error})"
        ) from error
    context.check_hostname = conn.ssl_check_hostname
    if conn.ssl_certfile is not None:

        def no_passphrase() -> str:
            # Without it OpenSSL asks on the terminal, and a worker waits there for ever.
            raise InvalidConnection(f"ssl_keyfile: the key of {conn.ssl_certfile} is encrypted; decrypt it")

        try:
            context.load_cert_chain(conn.ssl_certfile, conn.ssl_keyfile, password=no_passphrase)
        except ssl.SSLError as error:
            raise InvalidConnection(
                f"ssl_certfile, ssl_keyfile: {conn.ssl_certfile} and its key do not fit ({error})"
            ) from error
    return context


async def reach(conn: Connection, *, timeout_s: float, on_retry: OnRetry | None = None) -> None:
    """Return once a broker answers us in full: connected, encrypted, authenticated, metadata given.

    The clients' own start-up says little when it fails: kafka-python waits out its timeout without
    the reason, Faust restarts. Here the reason is the message.

    Raises
    ------
    BrokerAuthFailed
        at once: trying again with the same credentials helps nobody, and locks accounts.
    BrokerUnreachable
        after `timeout_s` of tries with growing pauses.
    """
    deadline = time.monotonic() + timeout_s
    wait_s = _FIRST_WAIT_S
    attempt = 0
    while True:
        attempt += 1
        reasons: list[str] = []
        for address in conn.brokers:
            left_s = deadline - time.monotonic()
            if reasons and left_s <= 0:
                break
            try:
                await _try(conn, address, timeout_s=max(0.1, min(_ATTEMPT_S, left_s)))
            except BrokerAuthFailed:
                raise
            except BrokerUnreachable as error:
                reasons.append(str(error))
            else:
                return
        reason = "; ".join(reasons)
        if time.monotonic() + wait_s >= deadline:
            raise BrokerUnreachable(
                f"no Kafka broker within {timeout_s:g} s: {reason}. "
                "Is the broker up, and are kafka.brokers and kafka.security_protocol right?"
            )
        if on_retry is not None:
            on_retry(attempt, wait_s, reason)
        await asyncio.sleep(wait_s)
        wait_s = min(_LONGEST_WAIT_S, wait_s * 2)


async def _try(conn: Connection, address: str, *, timeout_s: float) -> None:
    settings = _security(conn)
    try:
        async with asyncio.timeout(timeout_s):
            advertised = await _ask(address, conn.client_id, settings, timeout_s)
            where = [f"{host}:{port}" for host, port in advertised]
            if address in where:
                return
            # The trap of every first deployment: the broker answers, then sends us elsewhere.
            failures = []
            for host, port in advertised:
                try:
                    _, writer = await asyncio.open_connection(host, port)
                except OSError as error:
                    failures.append(f"{host}:{port} ({_reason(error)})")
                else:
                    writer.close()
                    return
            raise BrokerUnreachable(
                f"{address} answers, but sends clients to {', '.join(failures) or 'no broker'}, which cannot "
                "be reached from here: check the broker's advertised.listeners"
            )
    except BrokerError:
        raise
    except TimeoutError as error:
        raise BrokerUnreachable(f"{address}: no answer within {timeout_s:.1f} s") from error
    except (aiokafka.errors.KafkaError, OSError) as error:
        _raise_for(conn, address, error)


async def _ask(
    address: str, client_id: str, security: dict[str, Any], timeout_s: float
) -> list[tuple[str, int]]:
    """Connect, authenticate and ask for the cluster's members."""
    host, _, port = address.rpartition(":")
    link = await create_conn(
        host.strip("[]"),
        int(port),
        client_id=client_id,
        request_timeout_ms=int(timeout_s * 1000),
        **security,
    )
    try:
        # A listener that wants SASL answers the question for API versions from anyone, and hangs up on
        # the next: only a second question shows that we are let in.
        request = MetadataRequest([])
        response = await link.send(request)
        return [(str(host), int(port)) for _, host, port, *_ in response.brokers]
    finally:
        link.close()


def _raise_for(conn: Connection, address: str, error: Exception) -> NoReturn:
    """Raise what a client's error means for the user."""
    cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
    if isinstance(error, aiokafka.errors.SaslAuthenticationFailed):
        raise BrokerAuthFailed(
            f"{address} turned away user {conn.username!r} ({conn.sasl_mechanism}): check kafka.username, "
            "kafka.password and kafka.sasl_mechanism"
        ) from None  # the cause may quote what was sent
    if isinstance(error, aiokafka.errors.UnsupportedSaslMechanismError):
        raise BrokerAuthFailed(
            f"{address} does not offer {conn.sasl_mechanism}: set kafka.sasl_mechanism to one it does"
        ) from error
    if isinstance(error, aiokafka.errors.IllegalSaslStateError):
        raise BrokerAuthFailed(
            f"{address} does not ask for SASL: set kafka.security_protocol to PLAINTEXT or SSL"
        ) from error
    if isinstance(cause, ssl.SSLCertVerificationError):
        raise BrokerAuthFailed(
            f"{address} shows a certificate we do not trust ({cause.verify_message}): check kafka.ssl_cafile"
        ) from error
    if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
        raise BrokerAuthFailed(
            f"{address} does not accept our certificate ({cause.reason}): check kafka.ssl_certfile and "
            "kafka.ssl_keyfile"
        ) from error
    if isinstance(error, (aiokafka.errors.KafkaConnectionError, ConnectionResetError, ssl.SSLError)):
        raise BrokerUnreachable(
            f"{address} hangs up on {conn.security_protocol}; does this listener speak another "
            "kafka.security_protocol?"
        ) from error
    raise BrokerUnreachable(f"{address}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Name an error without its number and address: "Connection refused"."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _security(conn: Connection) -> dict[str, Any]:
    """Return what aiokafka and kafka-python call by the same names."""
    settings: dict[str, Any] = {"security_protocol": conn.security_protocol}
    context = tls_context(conn)
    if context is not None:
        settings["ssl_context"] = context
    if conn.sasl_mechanism is not None:
        settings["sasl_mechanism"] = conn.sasl_mechanism
        settings["sasl_plain_username"] = conn.username
        settings["sasl_plain_password"] = conn.password
    return settings


def _addresses(brokers: str | tuple[str, ...]) -> tuple[str, ...]:
    listed = brokers.replace(";", ",").split(",") if isinstance(brokers, str) else brokers
    addresses = []
    for written in listed:
        text = written.strip().removeprefix("kafka://")
        if not text:
            continue
        try:
            url = URL(f"kafka://{text}")
            host, port = url.host, url.explicit_port
        except ValueError:
            host = port = None
        if not host or url.path not in ("", "/") or url.user is not None:
            raise InvalidConnection(f'brokers: "{_without_user(text)}" is no address; write host:port')
        host = f"[{host}]" if ":" in host else host
        addresses.append(f"{host}:{port or _DEFAULT_PORT}")
    if not addresses:
        raise InvalidConnection('brokers: none given; write "host:port", or a list of them')
    return tuple(addresses)


def _without_user(text: str) -> str:
    """Hide a password somebody wrote into the address."""
    return f"***@{text.rpartition('@')[2]}" if "@" in text else text
