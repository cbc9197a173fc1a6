"""The connection: what its form says, that it is obeyed, and what testing it tells."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_llm_provider.hooks.claude import ClaudeHook
from airflow_llm_provider.ledger.rate_limits import Limits
from airflow_llm_provider.options import Options
from airflow_llm_provider.testing.wire import MODELS, Model

# What its form says.


def test_an_empty_form_gives_the_defaults(deployment):
    deployment.monkeypatch.setenv(
        "AIRFLOW_CONN_CLAUDE_DEFAULT", json.dumps({"conn_type": "claude", "password": deployment.key})
    )
    connection = ClaudeHook().connection
    assert connection.endpoint.client.base_url == "https://api.anthropic.com"
    assert connection.endpoint.tiers == {
        "fast": "claude-haiku-5-5",
        "balanced": "claude-sonnet-5-5",
        "strong": "claude-opus-5-5",
    }
    assert connection.endpoint.model(None) == "claude-sonnet-5-5"
    assert (connection.endpoint.timeout_s, connection.endpoint.deadline_s) == (300, 900)
    assert connection.endpoint.limits == Limits()
    assert connection.ledger_url.endswith("/llm_ledger.db")


def test_every_field_of_the_form_is_read(deployment):
    deployment.connect(
        fast="tiny",
        strong="huge",
        default_tier="strong",
        timeout_s="7",
        deadline_s=70,
        rpm="100",
        itpm=2_000,
        otpm="300",
        burst_s=2,
        proxy="http://proxy:3128",
        no_proxy="api.internal, 10.0.0.0/8",
        ca_bundle="/etc/ca.pem",
    )
    connection = ClaudeHook().connection
    assert connection.endpoint.tiers == {"fast": "tiny", "balanced": "claude-sonnet-5-5", "strong": "huge"}
    assert connection.endpoint.model(None) == "huge"
    assert connection.endpoint.model("claude-sonnet-4-5") == "claude-sonnet-4-5"
    assert (connection.endpoint.timeout_s, connection.endpoint.deadline_s) == (7, 70)
    assert connection.endpoint.limits == Limits(rpm=100, itpm=2_000, otpm=300, burst_s=2)
    assert (connection.endpoint.client.proxy, connection.endpoint.client.ca_bundle) == (
        "http://proxy:3128",
        "/etc/ca.pem",
    )
    assert connection.endpoint.client.no_proxy == ("api.internal", "10.0.0.0/8")
    assert connection.ledger_url == deployment.ledger_url


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *(
            (field, given)
            for field in ("timeout_s", "rpm")
            for given in ("plenty", "nan", "inf", 0, -1, True)
        ),
        *(("rpm", given) for given in (0.5, "0", [5], 10**400)),
        *(("fallbacks", given) for given in (5, True, {"fast": 1}, [3])),
        *((field, 5) for field in ("ca_bundle", "ledger_url", "default_tier", "strong")),
        ("proxy", 5),
    ],
)
def test_a_field_that_is_not_valid_is_named_with_the_connection(deployment, field, given):
    deployment.connect(**{field: given})
    with pytest.raises(AirflowFailException, match=rf"^Connection 'claude_default': .*{field}"):
        _ = ClaudeHook().connection


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_field_is_as_if_it_were_not_there(deployment, empty):
    fields = (
        "rpm",
        "timeout_s",
        "burst_s",
        "strong",
        "default_tier",
        "fallbacks",
        "proxy",
        "ca_bundle",
        "prices",
    )
    deployment.connect(**dict.fromkeys(fields, empty))
    connection = ClaudeHook().connection
    deployment.connect()
    assert connection == ClaudeHook().connection
    assert connection.endpoint.limits == Limits()


def connect_raw(deployment, **parts):
    connection = {"conn_type": "claude", "password": deployment.key, "host": deployment.server.url, **parts}
    deployment.monkeypatch.setenv("AIRFLOW_CONN_CLAUDE_DEFAULT", json.dumps(connection))


@pytest.mark.parametrize("extra", ["{'rpm': 5}", "rpm=5", "[5]", "5"])
def test_an_extra_that_is_no_json_object_is_not_passed_over(deployment, extra):
    connect_raw(deployment, extra=extra)
    with pytest.raises(AirflowFailException, match="its extra should be a JSON object") as caught:
        _ = ClaudeHook().connection
    assert extra not in str(caught.value)  # it may hold a password


def test_a_field_that_the_form_does_not_have_is_warned_of(deployment, caplog):
    deployment.connect(rmp=5, rpm=7)
    assert ClaudeHook().connection.endpoint.limits.rpm == 7
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "'claude_default' has no field 'rmp'" in said
    assert "Is rpm meant?" in said


@pytest.mark.parametrize("conn_type", ["claude", "anthropic", "http", "https", "generic", "", None])
def test_a_connection_of_a_type_that_holds_a_key_and_a_url_will_do(deployment, conn_type, caplog):
    connect_raw(
        deployment, conn_type=conn_type, extra={"rpm": 5, **({} if conn_type == "claude" else {"X": "1"})}
    )
    connection = ClaudeHook().connection
    assert (connection.endpoint.client.api_key, connection.endpoint.limits.rpm) == (deployment.key, 5)
    assert connection.endpoint.client.base_url == deployment.server.url
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("conn_type", ["aws", "mysql", "postgres", "slack"])
def test_a_connection_to_something_else_is_refused(deployment, conn_type):
    connect_raw(deployment, conn_type=conn_type)
    with pytest.raises(
        AirflowFailException, match=f"it is of type '{conn_type}', and should be of type 'claude'"
    ):
        _ = ClaudeHook().connection


@pytest.mark.parametrize("key", ["sk-ant-1\nsk-ant-2", "sk-änt", "sk\tant"])
def test_a_key_that_no_header_can_carry_is_told_without_it(deployment, key):
    deployment.connect(key=key)
    good, said = ClaudeHook().test_connection()
    assert not good
    assert "the API key in its password field has a line break" in said
    assert key not in said


@pytest.mark.parametrize(
    "host",
    [
        "http://",
        "https:///",
        "http://[::1",
        "http://x:abc",
        "http://x:0",
        "x:abc",
        "ftp://x",
        "//x",
        "http://a b",
    ],
)
def test_a_base_url_that_is_none_is_told_before_anything_is_tried(deployment, host):
    deployment.connect(host=host)
    with pytest.raises(AirflowFailException, match="the base URL should be http"):
        _ = ClaudeHook().connection


@pytest.mark.parametrize(
    ("parts", "url"),
    [
        ({"host": "https://gateway.example/claude/"}, "https://gateway.example/claude"),
        ({"host": "gateway.example", "port": 8443}, "https://gateway.example:8443"),
        ({"host": "gateway.example", "schema": "http"}, "http://gateway.example"),
        ({"host": "gateway.example/v1/", "port": 80}, "https://gateway.example:80"),
        ({"host": "http://[::1]:8080/v1"}, "http://[::1]:8080"),
    ],
)
def test_the_host_may_be_a_url_or_a_name(deployment, parts, url):
    deployment.monkeypatch.setenv("AIRFLOW_CONN_GATEWAY", json.dumps({"conn_type": "claude", **parts}))
    assert ClaudeHook("gateway").connection.endpoint.client.base_url == url


def test_a_connection_kept_in_the_database_works_too(deployment):
    from airflow.models import Connection
    from airflow.utils.session import create_session

    with create_session() as session:
        session.add(
            Connection(
                conn_id="claude_stored",
                conn_type="claude",
                host=deployment.server.url,
                password=deployment.key,
                extra=json.dumps({"ledger_url": deployment.ledger_url}),
            )
        )
    ran = deployment.ask(deployment.texts(2), claude_conn_id="claude_stored")
    assert ran.outcomes == {"answered": 2}
    assert deployment.calls[0]["connection_id"] == "claude_stored"


# That it is obeyed.


@pytest.mark.parametrize(
    ("asked", "model"),
    [(None, "claude-opus-5-5"), ("fast", "claude-sonnet-4-5"), ("claude-haiku-5-5", "claude-haiku-5-5")],
)
def test_a_task_asks_the_tier_of_the_connection(deployment, asked, model):
    deployment.connect(default_tier="strong", fast="claude-sonnet-4-5")
    ran = deployment.ask(deployment.texts(1), model=asked)
    assert [line.model for line in deployment.server.invoice.lines] == [model]
    assert ran.rows[0]["model"] == model


def test_a_fallback_is_asked_when_the_model_stays_overloaded(deployment):
    deployment.connect(fallbacks="balanced, claude-opus-5-5", deadline_s=0.01)
    deployment.server.fail(status=529, model="claude-haiku-5-5")
    deployment.server.fail(status=529, model="claude-sonnet-5-5")
    ran = deployment.ask(deployment.texts(1), model="fast")
    assert ran.outcomes == {"answered": 1}
    assert ran.rows[0]["model"] == "claude-opus-5-5"


def test_the_request_timeout_ends_a_request_that_hangs(deployment):
    deployment.connect(timeout_s=0.3, deadline_s=0.3)
    deployment.server.fail(kind="hang")
    ran = deployment.ask(deployment.texts(1), max_failed=1)
    assert ran.outcomes == {"dead_letter": 1}
    assert "No complete reply within 0.3 s" in ran.dead_letters[0]["message"]


def test_the_limits_of_the_connection_set_the_pace(deployment):
    deployment.ask(deployment.texts(1))  # so that imports don't count
    deployment.connect(rpm=60)
    deployment.server.latency_s = 0.0
    ran = deployment.ask(deployment.texts(10, start=100))
    assert 1.5 <= ran.manifest["seconds"] <= 10  # eight at once, then one a second


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("lease_s", value) for value in ("0", "-5", "nan", "inf", "1e300", "soon")),
        *(("synchronous", value) for value in ("fast", "OFF")),
    ],
)
def test_an_option_that_would_undo_a_promise_is_refused(deployment, option, value):
    deployment.monkeypatch.setenv(f"AIRFLOW__LLM__{option.upper()}", value)
    ran = deployment.ask(deployment.texts(1))
    assert ran.state == "failed"
    assert f"[llm] {option} is '{value}', and should be" in ran.log
    assert deployment.server.invoice.paid == 0


@pytest.mark.parametrize(
    ("option", "value"), [("lease_s", "1"), ("lease_s", "86400"), ("synchronous", "normal")]
)
def test_an_option_within_its_bounds_is_taken(deployment, option, value):
    deployment.monkeypatch.setenv(f"AIRFLOW__LLM__{option.upper()}", value)
    assert deployment.ask(deployment.texts(1)).outcomes == {"answered": 1}


# Behind proxies and private certificates.


class Proxy:
    """An HTTP proxy that forwards what it is asked and remembers it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        self.asked.append(f"{method.decode()} {target.decode()}")
        address = target if method == b"CONNECT" else target.split(b"/")[2]
        host, port = address.decode().split(":")
        upstream = socket.create_connection((host, int(port)))
        if method == b"CONNECT":
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            upstream.sendall(head)
        back = threading.Thread(target=_pump, args=(upstream, client), daemon=True)
        back.start()
        _pump(client, upstream)
        back.join(5)
        client.close()
        upstream.close()

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy()
    yield proxy
    proxy.close()


@pytest.fixture
def tls(deployment) -> Iterator[tuple[str, Path]]:
    """A TLS front of the stand-in and the certificate that vouches for it, which no system knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private test CA")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    bundle, both = deployment.folder / "ca.pem", deployment.folder / "server.pem"
    bundle.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    both.write_bytes(
        bundle.read_bytes()
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(both)
    loop, started = asyncio.new_event_loop(), threading.Event()
    ports: list[int] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", deployment.server.port)
        await asyncio.gather(pipe(reader, back), pipe(there, writer))

    servers: list[asyncio.Server] = []

    async def serve() -> None:
        servers.append(await asyncio.start_server(forward, "127.0.0.1", 0, ssl=context))
        ports.append(servers[0].sockets[0].getsockname()[1])
        started.set()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait(10)
    yield f"https://localhost:{ports[0]}", bundle

    async def end() -> None:
        servers[0].close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.05)
        loop.stop()

    loop.call_soon_threadsafe(lambda: loop.create_task(end()))
    thread.join(5)
    loop.close()


def test_requests_go_through_the_proxy_of_the_connection(deployment, proxy):
    deployment.connect(proxy=proxy.url)
    assert deployment.ask(deployment.texts(2)).outcomes == {"answered": 2}
    assert proxy.asked
    assert all(deployment.server.url.removeprefix("http://") in asked for asked in proxy.asked)
    assert ClaudeHook().test_connection()[0]


def test_a_server_with_a_private_certificate_is_trusted_by_the_connections_ca_bundle(deployment, tls, proxy):
    url, bundle = tls
    deployment.connect(host=url)
    refused, why = ClaudeHook().test_connection()
    assert not refused
    assert "certificate" in why.lower()
    deployment.connect(host=url, ca_bundle=str(bundle))
    trusted, said = ClaudeHook().test_connection()
    assert trusted, said
    assert deployment.ask(deployment.texts(2)).outcomes == {"answered": 2}
    deployment.connect(host=url, ca_bundle=str(bundle), proxy=proxy.url)
    assert deployment.ask(deployment.texts(2, start=10)).outcomes == {"answered": 2}
    assert any(asked.startswith("CONNECT localhost:") for asked in proxy.asked)


# What testing it tells.


def test_a_good_connection_names_the_tiers_it_can_use(deployment):
    good, said = ClaudeHook().test_connection()
    assert good
    assert said.count(" ok") == 3
    for model in ("fast: claude-haiku-5-5", "balanced: claude-sonnet-5-5", "strong: claude-opus-5-5"):
        assert model in said
    assert deployment.server.invoice.paid == 0


def test_a_tier_that_the_key_cannot_use_is_named(deployment):
    deployment.connect(strong="claude-opus-9")
    good, said = ClaudeHook().test_connection()
    assert not good
    assert "strong: claude-opus-9 NOT available to this key" in said
    assert "fast: claude-haiku-5-5 ok" in said


def test_a_model_that_retires_soon_is_named_with_its_day(deployment):
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=20)
    old = Model(id="claude-old-1", name="Old", line="haiku", retires_at=f"{soon:%Y-%m-%dT%H:%M:%SZ}")
    deployment.server.models = {model.id: model for model in (*MODELS, old)}
    deployment.connect(fast="claude-old-1")
    good, said = ClaudeHook().test_connection()
    assert good
    assert f"claude-old-1 retires on {soon:%Y-%m-%d}: choose another for fast" in said
    assert said.count("retires") == 1


def test_a_wrong_key_is_a_clear_error_without_the_key(deployment):
    deployment.server.api_key = "another"
    good, said = ClaudeHook().test_connection()
    assert not good
    assert "HTTP 401" in said
    assert "Check the API key in the Airflow connection" in said
    assert deployment.key not in said


def test_a_missing_key_says_where_to_put_it(deployment):
    deployment.connect(key="")
    good, said = ClaudeHook().test_connection()
    assert not good
    assert "password field" in said


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://no-such-host.invalid"])
def test_a_host_that_cannot_be_reached_is_named(deployment, host):
    deployment.connect(host=host)
    good, said = ClaudeHook().test_connection()
    assert not good
    assert host in said
    assert deployment.key not in said


def test_a_host_that_speaks_something_else_is_an_answer_and_no_crash(deployment):
    deployment.connect(host=f"{deployment.server.url}/elsewhere")
    good, said = ClaudeHook().test_connection()
    assert not good
    assert "404" in said


def test_a_connection_that_is_not_there_is_named():
    good, said = ClaudeHook("claude_nowhere").test_connection()
    assert not good
    assert "There is no connection 'claude_nowhere'" in said
    assert "airflow connections add claude_nowhere --conn-type claude" in said


def test_a_task_says_how_to_add_the_connection_that_is_not_there(deployment):
    ran = deployment.ask(deployment.texts(1), claude_conn_id="claude_nowhere")
    assert ran.state == "failed"
    assert "AIRFLOW_CONN_CLAUDE_NOWHERE=" in ran.log


@pytest.mark.filterwarnings("ignore:ProvidersManager.hooks is deprecated")  # Airflow's own
def test_the_connection_is_tested_from_the_form_too(deployment):
    """As the button does: Airflow puts the form in the environment under an id of its own."""
    from airflow.models import Connection

    form = Connection(
        conn_id="transient",
        conn_type="claude",
        host=deployment.server.url,
        password=deployment.key,
        extra=json.dumps({"fast": "none"}),
    )
    deployment.monkeypatch.setenv("AIRFLOW_CONN_TRANSIENT", form.get_uri())
    good, said = form.test_connection()
    assert not good
    assert "fast: none NOT available" in said


# Around the event loop.


def test_a_task_timeout_that_strikes_in_a_callback_is_not_lost(deployment):
    def strike() -> None:
        raise AirflowTaskTimeout("now")

    hook = ClaudeHook()

    async def work() -> None:
        async with hook.open_engine(Options(), None, own_loop=True):
            asyncio.get_running_loop().call_soon(strike)
            await asyncio.sleep(60)

    with pytest.raises(AirflowTaskTimeout, match="now"):
        hook.run(work(), None)


def test_a_hook_can_run_twice(deployment):
    hook = ClaudeHook()

    async def work():
        async with hook.open_engine(Options(), None, own_loop=True) as engine:
            return await engine.endpoint.client.models()

    assert len(hook.run(work(), None)) == len(hook.run(work(), None)) == len(MODELS)
    assert hook.test_connection()[0]
    assert hook.test_connection()[0]
