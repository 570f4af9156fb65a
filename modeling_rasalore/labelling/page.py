"""Serve the page on this machine: Gradio's frame around our own HTML, style and script."""

import os
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

from ..files import SCAN_ERRORS, first_line
from ..provenance import DISCLAIMER
from .desk import LabelDesk

TITLE = "RASALoRE: label slices"
HOST = "127.0.0.1"  # scans of patients are for nobody else
PORTS = range(7860, 7960)


def build_page() -> Any:
    """Return the page as Gradio blocks; its script asks the desk for everything else.

    Raises:
        ValueError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    try:
        import gradio as gr
    except ImportError as error:
        raise ValueError(
            "rasalore label needs the extra [demo]; run pip install 'rasalore[demo]'."
        ) from error
    html = read_asset("page.html").replace("DISCLAIMER", DISCLAIMER)
    with gr.Blocks(title=TITLE) as blocks:
        gr.HTML(html, js_on_load=read_asset("page.js"), apply_default_css=False)
    return blocks


def read_asset(name: str) -> str:
    """Return the text of a file beside this module."""
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def serve(desk: LabelDesk, port: int | None = None, browser: bool = True) -> None:
    """Serve the page until the user interrupts.

    Args:
        desk: answers the page.
        port: as for `listen`.
        browser: whether to open the page in the user's browser.
    """
    with listen(port) as listener:
        server = make_server(desk)
        address = address_of(listener)
        print(f"labelling at {address} (Ctrl-C ends it; everything marked is kept)", flush=True)
        if browser:
            webbrowser.open(address)  # it waits for the server
        with suppress(KeyboardInterrupt):
            server.run([listener])


def listen(port: int | None = None) -> socket.socket:
    """Return a socket of this machine alone that takes connections.

    Args:
        port: None: the first free one of `PORTS`.

    Raises:
        ValueError: the port is not free.
    """
    for candidate in PORTS if port is None else [port]:
        with suppress(OSError):
            return socket.create_server((HOST, candidate))
    wanted = f"{PORTS[0]} to {PORTS[-1]}" if port is None else port
    raise ValueError(f"port {wanted} is not free on this machine; give another one as --port.")


def address_of(listener: socket.socket) -> str:
    """Return where a browser finds the page."""
    return f"http://{HOST}:{listener.getsockname()[1]}/"


def make_server(desk: LabelDesk) -> Any:
    """Return a uvicorn server of the page and its routes, not started yet."""
    blocks = build_page()
    import uvicorn
    from fastapi import FastAPI
    from gradio import mount_gradio_app, themes
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    # A page elsewhere cannot pose as this machine to read scans.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    add_routes(app, desk)
    mount_gradio_app(
        app,
        blocks,
        path="/",
        theme=themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=read_asset("page.css"),
        footer_links=[],
        run_history=False,
        ssr_mode=False,
    )
    # Gradio holds a connection to every page open, which is not waited for.
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


def add_routes(app: Any, desk: LabelDesk) -> None:
    """Add what the page's script asks, below /label, to a FastAPI app."""
    from fastapi import Response

    def answer_picture(draw: Callable[[], bytes]) -> Any:
        try:
            headers = {"Cache-Control": "no-store"}  # scans stay out of the browser's files
            return Response(draw(), media_type="image/png", headers=headers)
        except (*SCAN_ERRORS, LookupError, ImportError) as error:
            return Response(first_line(error), status_code=409, media_type="text/plain")

    @app.get("/label/open")
    def open_page() -> dict[str, Any]:
        return desk.open_page()

    @app.get("/label/scan/{number}")
    def show_scan(number: int) -> dict[str, Any]:
        return desk.show_scan(number)

    @app.get("/label/picture/{number}/{name}")
    def draw(number: int, name: str) -> Any:
        return answer_picture(lambda: desk.draw(number, name))

    @app.get("/label/suggestion/{number}")
    def suggest(number: int) -> Any:
        return answer_picture(lambda: desk.suggest(number))

    @app.post("/label/press")
    def press(content: dict[str, Any]) -> dict[str, Any]:
        return desk.press(content)
