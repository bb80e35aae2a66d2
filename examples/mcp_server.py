"""A server of the MCP Python SDK whose tools act as whoever asks, and whose sessions are their owner's alone.

    python examples/mcp_server.py            serves on 127.0.0.1 and prints what to try
    python examples/mcp_server.py --ask URL  asks such a server, as two users of one tenant

The SDK runs a tool in the context of the HTTP request that asked for it, in a long session as well. `OwnedSessions`
sees to it that the id of a session is worth nothing to anybody but who opened it, and `OwnedEvents`, around an event
store if you have one, that nobody replays what somebody else was sent.

What it needs, in the checkout: pip install ".[mcp]" uvicorn
"""

import argparse
import asyncio
import socket
from contextlib import suppress

import httpx2
import uvicorn
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.mcpserver import Context, MCPServer

from asgi_context import ContextMiddleware, MemoryStore, current_context, current_state, from_header
from asgi_context.mcp import OwnedSessions

server = MCPServer("notes", log_level="WARNING")


@server.tool()
async def save_note(title: str, text: str, context: Context) -> int:
    """Save a note of whoever asks, and tell how many there are."""
    await context.report_progress(1, 2, f"saving for {current_context().user}")
    await current_state().update_field("notes", title, text)
    return len(await current_state().get("notes") or {})


@server.tool()
def count_notes() -> int:
    """Count the notes of whoever asks: this runs in a thread, where state is to be had by `.sync`."""
    return len(current_state().sync.get("notes") or {})


@server.resource("notes://{title}")
async def read_note(title: str) -> str:
    """Give one note of whoever asks."""
    return str(await current_state().get_field("notes", title, "no such note"))


@server.prompt()
def summarise() -> str:
    """Ask for a summary, as whoever asks for it."""
    return f"Summarise the notes of {current_context().user}, who works for {current_context().tenant}."


app = ContextMiddleware(
    OwnedSessions(server.streamable_http_app()),
    # To try things out. Anybody can send any header: in earnest, check a token by `identity=JWTAuth(...)`.
    tenant=from_header("x-tenant-id"),
    user=from_header("x-user-id"),
    store=MemoryStore(),
)


async def ask(url: str) -> None:
    """Be two users, each with a session of the SDK's client."""
    for user in ("ann", "bob"):
        headers = {"x-tenant-id": "acme", "x-user-id": user}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False) as http,
            Client(streamable_http_client(url, http_client=http), mode="legacy") as client,
        ):
            if user == "ann":
                await client.call_tool("save_note", {"title": "greeting", "text": "hello"})
            counted = await client.call_tool("count_notes", {})
            print(f"{user}: {counted.structured_content}")
            for part in (await client.read_resource("notes://greeting")).contents:
                print(f"{user}: {part.model_dump_json(include={'text'})}")


def main() -> None:
    """Serve until Ctrl-C, or ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="where to serve on 127.0.0.1 (default: a free port)")
    parser.add_argument("--ask", metavar="URL", help="ask a server that runs already")
    args = parser.parse_args()
    if args.ask:
        asyncio.run(ask(args.ask))
        return
    with socket.create_server(("127.0.0.1", args.port)) as listener, suppress(KeyboardInterrupt):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        print(f"python examples/mcp_server.py --ask {url}")
        print(f"curl -i {url}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).run([listener])


if __name__ == "__main__":
    main()
