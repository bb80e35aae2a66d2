"""Log lines tell on whose behalf they were written, and nobody can forge one."""

import asyncio
import contextvars
import io
import json
import logging
import logging.config
import logging.handlers
import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Self

import loguru
import pytest
import structlog
from driver import Exchange, http, who
from hypothesis import example, given
from hypothesis import strategies as st

from asgi_context import (
    ContextMiddleware,
    Identity,
    bind_context,
    carry_context,
    current_context,
    from_header,
    unbound_context,
)
from asgi_context._context import current_binding
from asgi_context._extract._identifiers import IDENTIFIER
from asgi_context.logging import ContextFilter, context_fields
from asgi_context.structlog import add_context

ANN = Identity("acme", "ann")
FIELDS = ("ctx_tenant", "ctx_user", "ctx_request_id")


class Told(logging.Handler):
    """Keeps what records tell."""

    def __init__(self, *filters: logging.Filter) -> None:
        super().__init__()
        self.lines: list[tuple[Any, ...]] = []
        for each in filters:
            self.addFilter(each)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(tuple(getattr(record, field) for field in FIELDS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    log = logging.getLogger("tests.logs")
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [], False
    log.setLevel(logging.DEBUG)
    yield log
    for handler in log.handlers:
        handler.close()
    log.handlers, log.propagate, level = before
    log.setLevel(level)


def told(log: logging.Logger, **options: Any) -> Callable[[], list[tuple[Any, ...]]]:
    handler = Told(ContextFilter(**options))
    log.addHandler(handler)
    return lambda: [handler.lines.pop(0) for _ in range(len(handler.lines))]


# The filter


def test_a_line_tells_who_asks(log: logging.Logger) -> None:
    lines = told(log)
    with bind_context(ANN, request_id="r1"):
        log.info("x")
    log.info("x")
    with bind_context(Identity("acme"), request_id="r1"):
        log.info("a tenant without a user")
    assert lines() == [("acme", "ann", "r1"), ("-", "-", "-"), ("acme", "-", "r1")]


def test_a_line_tells_the_request_id_that_the_context_has(log: logging.Logger) -> None:
    lines = told(log)
    with bind_context(ANN) as context:
        log.info("before anybody has asked for it")
        assert lines() == [("acme", "ann", context.request_id)]


@pytest.mark.anyio
async def test_a_request_without_identity_has_an_id_alone(log: logging.Logger) -> None:
    lines = told(log)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        log.info("x")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    middleware = ContextMiddleware(
        app, tenant=from_header("x-tenant-id"), missing="unbound", echo_request_id="x-request-id"
    )
    exchange = Exchange()
    await middleware(http(), exchange.receive, exchange.send)
    ((name, echoed),) = exchange.sent[0]["headers"]
    assert name == b"x-request-id"
    assert lines() == [("-", "-", echoed.decode())]


@pytest.mark.anyio
async def test_the_line_of_a_refusal_tells_the_id_that_its_client_was_told(log: logging.Logger) -> None:
    handler = Told(ContextFilter())
    package = logging.getLogger("asgi_context")
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    try:
        middleware = ContextMiddleware(
            _never, tenant=from_header("x-tenant-id"), authorize=lambda *_: False, echo_request_id="x-request-id"
        )
        exchange = Exchange()
        await middleware(http(*who()), exchange.receive, exchange.send)
    finally:
        package.removeHandler(handler)
        package.setLevel(logging.NOTSET)
    echoed = dict(exchange.sent[0]["headers"])[b"x-request-id"].decode()
    assert handler.lines == [("-", "-", echoed)]


async def _never(*_: object) -> NoReturn:
    raise AssertionError("refused requests do not get here")


def test_what_is_nobodys_is_nobodys(log: logging.Logger) -> None:
    lines = told(log)
    with bind_context(ANN), unbound_context():
        log.info("x")
    assert lines() == [("-", "-", "-")]


def test_what_was_revoked_is_nobodys(log: logging.Logger) -> None:
    lines = told(log)
    block = bind_context(ANN)
    inside = contextvars.copy_context()
    inside.run(block.__enter__)
    block.__exit__(None, None, None)  # in another Context than it was entered in
    inside.run(log.info, "x")
    assert lines() == [("-", "-", "-")]


def test_a_task_that_outlives_its_request_still_tells_for_whom_it_runs(log: logging.Logger) -> None:
    lines = told(log)
    with bind_context(ANN, request_id="r1"):
        later = contextvars.copy_context()
    later.run(log.info, "x")
    assert lines() == [("acme", "ann", "r1")]


def test_threads_that_carry_the_context_tell_it(log: logging.Logger) -> None:
    lines = told(log)
    with bind_context(ANN, request_id="r1"):
        for job in (carry_context(log.info), log.info):
            thread = threading.Thread(target=job, args=("x",))
            thread.start()
            thread.join()
    assert lines() == [("acme", "ann", "r1"), ("-", "-", "-")]


def test_a_handler_tells_it_of_loggers_below_and_a_logger_does_not(log: logging.Logger) -> None:
    handler = Told(ContextFilter())
    log.addHandler(handler)
    below = logging.getLogger("tests.logs.below")
    with bind_context(ANN, request_id="r1"):
        below.info("x")
    assert handler.lines == [("acme", "ann", "r1")]
    handler.filters.clear()
    handler.emit = lambda record: handler.lines.append((hasattr(record, "ctx_tenant"),))  # type: ignore[method-assign]
    log.addFilter(ContextFilter())
    try:
        handler.lines.clear()
        below.info("x")
        log.info("x")
        assert handler.lines == [(False,), (True,)]
    finally:
        log.filters.clear()


def test_what_a_record_has_stays(log: logging.Logger) -> None:
    lines = told(log)
    with bind_context(ANN, request_id="r1"):
        log.info("x", extra={"ctx_tenant": None, "ctx_user": "root\n"})
    assert lines() == [(None, "root\n", "r1")]


def test_the_first_of_two_filters_says_it(log: logging.Logger) -> None:
    log.addHandler(Told(ContextFilter(unbound="?")))
    lines = told(log)
    log.info("x")
    assert lines() == [("?", "?", "?")]


@pytest.mark.parametrize("unbound", ["", "(nobody)", None])
def test_what_stands_where_nobody_is_bound_can_be_chosen(log: logging.Logger, unbound: str | None) -> None:
    lines = told(log, unbound=unbound)
    log.info("x")
    with bind_context(Identity("None"), request_id="-"):
        log.info("x")
        assert context_fields(unbound=unbound) == {"ctx_tenant": "None", "ctx_user": unbound, "ctx_request_id": "-"}
    assert lines() == [(unbound, unbound, unbound), ("None", unbound, "-")]


def test_nobody_can_be_called_as_nobody_is(log: logging.Logger) -> None:
    """The hyphen is a good identifier."""
    lines = told(log)
    with bind_context(Identity("-", "--"), request_id="-"):
        log.info("x")
        assert list(context_fields().values()) == [r"\x2d", "--", r"\x2d"]
    with bind_context(Identity("nobody at all")):
        assert context_fields(unbound="nobody at all")["ctx_tenant"] == "".join(
            f"\\x{ord(letter):02x}" for letter in "nobody at all"
        )
    assert lines() == [(r"\x2d", "--", r"\x2d")]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"unbound": 1}, TypeError, "unbound must be a str or None, not int"),
        ({"unbound": "\n"}, ValueError, r"unbound must be printable and without backslashes.* not '\\n'"),
        ({"unbound": "\\x2d"}, ValueError, "unbound must be printable and without backslashes"),
        ({"outside": "asyncio"}, TypeError, "outside must be several names of loggers, not 'asyncio'"),
        ({"outside": None}, TypeError, "outside must be several names of loggers, not None"),
        ({"outside": [1]}, TypeError, "outside: a name of a logger must be a str, not int"),
    ],
)
def test_bad_options_are_refused(options: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ContextFilter(**options)


# What must not go wrong


class Slotted:
    """A record of somebody's own making, that takes nothing."""

    __slots__ = ("name",)

    def __init__(self, *_: Any, **__: Any) -> None:
        self.name = "tests.logs"


class Broken(logging.LogRecord):
    @property
    def ctx_tenant(self) -> NoReturn:
        raise OSError("down")


class Nameless(logging.LogRecord):
    def __init__(self) -> None:
        pass

    @property
    def name(self) -> NoReturn:
        raise OSError("down")

    def filtered(self) -> list[Any]:
        assert ContextFilter().filter(self) is True
        return [getattr(self, field) for field in FIELDS]


def test_it_never_raises_and_never_holds_back_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    record: Any
    for record in (Slotted(), object(), Broken("x", 10, "x", 1, "x", None, None)):
        assert ContextFilter().filter(record) is True
    assert Nameless().filtered() == ["-", "-", "-"]
    assert (record.ctx_user, record.ctx_request_id) == ("-", "-"), "the other fields are there"

    def fail(_: int) -> NoReturn:
        raise NotImplementedError  # as Python says where there is no randomness

    monkeypatch.setattr(os, "urandom", fail)
    record = logging.makeLogRecord({})
    with bind_context(ANN):
        assert ContextFilter().filter(record) is True
        assert context_fields() == dict.fromkeys(FIELDS, "-")
        assert add_context(None, "info", {}) == {}
    assert [getattr(record, field) for field in FIELDS] == ["-", "-", "-"]


def test_it_logs_nothing_itself(log: logging.Logger) -> None:
    root, seen = logging.getLogger(), list[logging.LogRecord]()
    with Told() as handler:
        handler.emit = seen.append  # type: ignore[method-assign]
        root.addHandler(handler)
        level = root.level
        root.setLevel(logging.DEBUG)
        try:
            for record in (logging.makeLogRecord({}), Slotted()):
                with bind_context(Identity("\n\x1b[31m")):
                    ContextFilter().filter(record)  # type: ignore[arg-type]
        finally:
            root.setLevel(level)
            root.removeHandler(handler)
    assert seen == []


def test_the_errors_of_asyncio_and_of_servers_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written wherever garbage is collected, or in what an earlier request has left."""
    context_filter, own = ContextFilter(), ContextFilter(outside=["server"])
    seen: dict[str, list[str]] = {}
    with bind_context(ANN, request_id="r1"):
        for name in ("asyncio", "uvicorn.error", "uvicorn", "uvicorn.access", "daphne.server", "asyncioX", "server.a"):
            for each in (context_filter, own):
                record = logging.makeLogRecord({"name": name})
                each.filter(record)
                seen.setdefault(name, []).append(record.ctx_tenant)  # type: ignore[attr-defined]
    assert seen == {
        "asyncio": ["-", "acme"],
        "uvicorn.error": ["-", "acme"],
        "uvicorn": ["acme", "acme"],
        "uvicorn.access": ["acme", "acme"],
        "daphne.server": ["-", "acme"],
        "asyncioX": ["acme", "acme"],
        "server.a": ["acme", "-"],
    }


def test_a_task_that_failed_unseen_is_logged_by_whoever_collects_it() -> None:
    """The fact for which records of asyncio are nobody's."""
    asyncio_log = logging.getLogger("asyncio")
    handler = Told(ContextFilter(outside=()))
    handler.addFilter(lambda record: "never retrieved" in record.getMessage())
    asyncio_log.addHandler(handler)
    propagate, asyncio_log.propagate = asyncio_log.propagate, False

    async def main() -> None:
        async def fail() -> NoReturn:
            raise OSError

        with bind_context(ANN):
            task: Any = asyncio.create_task(fail())
            await asyncio.wait([task])
        with bind_context(Identity("other", "bob"), request_id="r2"):
            del task  # freed here

    try:
        asyncio.run(main())
    finally:
        asyncio_log.removeHandler(handler)
        asyncio_log.propagate = propagate
    assert handler.lines == [("other", "bob", "r2")]


def test_an_access_line_does_not_tell_of_a_request_that_has_ended() -> None:
    with bind_context(ANN):
        later = contextvars.copy_context()
        assert current_context().tenant == "acme"
    record = logging.makeLogRecord({"name": "uvicorn.access"})
    later.run(ContextFilter().filter, record)
    assert record.ctx_tenant == "-"  # type: ignore[attr-defined]


# Escaping

HOSTILE = {
    "a\nINFO root did it": r"a\x0aINFO\x20root\x20did\x20it",
    "\r\x00\x7f\x85": r"\x0d\x00\x7f\x85",
    "\x1b[31m": r"\x1b\x5b31m",
    "\x9b31m": r"\x9b31m",
    "a user=root": r"a\x20user=root",
    "\"'`": r"\x22\x27\x60",
    "%(msg)s{0}<b>": r"\x25\x28msg\x29s\x7b0\x7d\x3cb\x3e",
    "\\x0a": r"\x5cx0a",
    "\u2028\u202e\ufeff": r"\u2028\u202e\ufeff",
    "é": r"\xe9",
    "\U0001f600": r"\U0001f600",
    "\udc80": r"\udc80",
    "a" * 128: "a" * 128,
    "a" * 129: "a" * 128 + r"\...",
    "\n" * 10_000: r"\x0a" * 128 + r"\...",
}


@pytest.mark.parametrize("value", HOSTILE)
def test_what_could_forge_a_line_is_escaped(value: str) -> None:
    with bind_context(Identity(value, value), request_id=value):
        assert list(context_fields().values()) == [HOSTILE[value]] * 3


@given(st.text(min_size=1))
@example("é\n")
@example("a" * 129)
def test_no_value_ends_its_field(value: str) -> None:
    with bind_context(Identity(value), request_id=value):
        shown = context_fields()["ctx_tenant"]
        record = logging.makeLogRecord({"msg": "said"})
        ContextFilter().filter(record)
        line = logging.Formatter('tenant="%(ctx_tenant)s" id=%(ctx_request_id)s %(message)s').format(record)
    assert shown is not None
    assert re.fullmatch(r"([A-Za-z0-9._\-~@:|+=]|\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8})+(\\\.\.\.)?", shown)
    assert line == f'tenant="{shown}" id={shown} said'
    assert len(shown) <= 128 * 10 + 4


@given(st.text(min_size=1, max_size=128))
@example("\\x2d")
@example("-")
def test_no_two_values_are_shown_alike(value: str) -> None:
    with bind_context(Identity(value)):
        shown = context_fields()["ctx_tenant"]
    assert shown is not None
    assert shown.encode().decode("unicode_escape") == value  # so it can be read back
    assert shown != "-"


@given(st.from_regex(IDENTIFIER, fullmatch=True).filter(lambda text: text != "-"))
def test_an_identifier_that_needs_no_rule_of_its_own_is_shown_as_it_is(value: str) -> None:
    with bind_context(Identity(value)):
        assert context_fields()["ctx_tenant"] == value


# Where it is put


def test_with_a_queue_it_is_asked_in_the_thread_that_logs(log: logging.Logger) -> None:
    records: queue.SimpleQueue[Any] = queue.SimpleQueue()
    entrance = logging.handlers.QueueHandler(records)
    entrance.addFilter(ContextFilter())
    log.addHandler(entrance)
    exit_ = Told(ContextFilter())  # which stands in another thread, and finds it said
    listener = logging.handlers.QueueListener(records, exit_)
    listener.start()
    with bind_context(ANN, request_id="r1"):
        log.info("x")
    listener.stop()
    assert exit_.lines == [("acme", "ann", "r1")]


def test_it_can_be_named_in_a_configuration(log: logging.Logger) -> None:
    stream = io.StringIO()
    logging.config.dictConfig({
        "version": 1,
        "incremental": False,
        "disable_existing_loggers": False,
        "filters": {
            "context": {"()": "asgi_context.logging.ContextFilter", "unbound": "nobody", "outside": ["asyncio"]},
        },
        "formatters": {"plain": {"format": "{ctx_tenant} {ctx_user} {ctx_request_id} {message}", "style": "{"}},
        "handlers": {
            "out": {
                "class": "logging.StreamHandler",
                "stream": stream,
                "filters": ["context"],
                "formatter": "plain",
            },
        },
        "loggers": {log.name: {"handlers": ["out"], "level": "INFO"}},
    })
    log.info("hello")
    with bind_context(ANN, request_id="r1"):
        log.info("hello")
    assert stream.getvalue() == "nobody nobody nobody hello\nacme ann r1 hello\n"


# structlog


@pytest.fixture
def events() -> Iterator[structlog.testing.LogCapture]:
    capture = structlog.testing.LogCapture()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, add_context, capture])
    yield capture
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_an_event_of_structlog_tells_who_asks(events: structlog.testing.LogCapture) -> None:
    log = structlog.get_logger()
    with bind_context(Identity("acme", "a\nb"), request_id="r1"):
        log.info("x")
        log.bind(ctx_user=None).info("x", ctx_tenant="mine")
    with bind_context(Identity("-"), request_id="r1"):
        log.info("x")
    log.info("x")
    common = {"event": "x", "log_level": "info"}
    assert events.entries == [
        {"ctx_tenant": "acme", "ctx_user": r"a\x0ab", "ctx_request_id": "r1", **common},
        {"ctx_tenant": "mine", "ctx_user": None, "ctx_request_id": "r1", **common},
        {"ctx_tenant": "-", "ctx_request_id": "r1", **common},
        common,
    ]


def test_what_was_revoked_is_nobodys_for_structlog_too(events: structlog.testing.LogCapture) -> None:
    with bind_context(ANN):
        current_binding().revoke()
        structlog.get_logger().info("x")
    assert events.entries == [{"event": "x", "log_level": "info"}]


@pytest.mark.anyio
async def test_structlog_may_log_in_a_thread(asyncio_only: None, events: structlog.testing.LogCapture) -> None:
    with bind_context(ANN, request_id="r1"):
        await structlog.get_logger().ainfo("x")
    assert [entry["ctx_tenant"] for entry in events.entries] == ["acme"]


def test_structlogs_formatter_has_what_the_filter_found(log: logging.Logger) -> None:
    """On records of the standard library too, and on a server's none."""
    stream, rendering = io.StringIO(), structlog.stdlib.ProcessorFormatter
    handler = logging.StreamHandler(stream)
    handler.addFilter(ContextFilter())
    handler.setFormatter(
        rendering(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[rendering.remove_processors_meta, structlog.processors.JSONRenderer()],
        )
    )
    log.addHandler(handler)
    own = structlog.wrap_logger(
        log, processors=[add_context, rendering.wrap_for_formatter], wrapper_class=structlog.stdlib.BoundLogger
    )
    with bind_context(ANN, request_id="r1"):
        log.info("x")
        own.info("x")
        handler.handle(logging.makeLogRecord({"name": "uvicorn.error", "msg": "x", "levelno": 40}))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [tuple(line[field] for field in FIELDS) for line in lines] == [("acme", "ann", "r1")] * 2 + [("-",) * 3]


@given(st.text(min_size=1))
def test_structlogs_renderers_write_one_line(value: str) -> None:
    for render in (
        structlog.processors.JSONRenderer(),
        structlog.processors.LogfmtRenderer(),
        structlog.dev.ConsoleRenderer(colors=False),
    ):
        with bind_context(Identity(value), request_id="r1"):
            line = render(None, "info", dict(add_context(None, "info", {"event": "x"})))
        assert str(line).isascii()
        assert str(line).isprintable()


# loguru


def test_loguru_takes_the_fields_by_a_patcher() -> None:
    lines = list[str]()
    logger = loguru.logger
    logger.remove()
    logger.configure(patcher=lambda record: record.update(extra=context_fields() | record["extra"]))
    try:
        logger.add(lines.append, format="{extra[ctx_tenant]} {extra[ctx_user]} {message}", colorize=True)  # type: ignore[arg-type]
        logger.add(io.StringIO(), serialize=True, enqueue=False)
        with bind_context(Identity("<red>{message}", "a\nb")):
            logger.info("x")
            logger.bind(ctx_tenant="mine").info("x")
        logger.info("x")
    finally:
        logger.remove()
        logger.configure(patcher=lambda record: None, extra={})
    assert [str(line) for line in lines] == [
        "\\x3cred\\x3e\\x7bmessage\\x7d a\\x0ab x\n",
        "mine a\\x0ab x\n",
        "- - x\n",
    ]


def test_loguru_tells_it_in_the_thread_that_logs() -> None:
    """Also where another writes it."""
    stream = io.StringIO()
    logger = loguru.logger
    logger.remove()
    logger.configure(patcher=lambda record: record.update(extra=context_fields() | record["extra"]))
    try:
        logger.add(stream, serialize=True, enqueue=True)
        with bind_context(ANN, request_id="r1"):
            logger.info("x")
        logger.complete()
    finally:
        logger.remove()
        logger.configure(patcher=lambda record: None, extra={})
    assert json.loads(stream.getvalue())["record"]["extra"] == dict(zip(FIELDS, ("acme", "ann", "r1"), strict=True))
