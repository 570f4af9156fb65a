"""Serve the page on this machine: Gradio's frame around our own HTML, style and script."""

import os
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from ..files import SCAN_ERRORS, first_line
from ..provenance import DISCLAIMER
from .desk import LabelDesk

TITLE = "RASALoRE: label slices"
HOST = "127.0.0.1"  # scans of patients are for nobody else
HOSTS = [HOST, "localhost"]


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


def serve(
    desk: LabelDesk, port: int | None = None, browser: bool = True, wait: bool = True
) -> tuple[Any, str]:
    """Serve the page; returns the blocks, which are closed to end it, and the page's address.

    Args:
        desk: answers the page.
        port: of this machine; None: the first free one from 7860 on.
        browser: whether to open the page in the user's browser.
        wait: whether to return only when the user interrupts.
    """
    blocks = build_page()
    from fastapi.middleware import Middleware
    from gradio import themes
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    _, address, _ = blocks.launch(
        server_name=HOST,
        server_port=port,
        inbrowser=browser,
        prevent_thread_lock=True,
        quiet=True,
        theme=themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=read_asset("page.css"),
        app_kwargs={
            "routes": [make_routes(desk)],
            # a page elsewhere cannot pose as this machine to read scans
            "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)],
        },
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        share=False,
    )
    print(f"labelling at {address} ; Ctrl-C ends it, and everything marked is kept")
    if wait:
        blocks.block_thread()
    return blocks, address


def make_routes(desk: LabelDesk) -> Any:
    """Return what the page's script asks, as routes below /label."""
    from fastapi import FastAPI, Response
    from starlette.routing import Mount

    app = FastAPI(openapi_url=None)

    def answer_picture(draw: Callable[[], bytes]) -> Any:
        try:
            headers = {"Cache-Control": "no-store"}  # scans stay out of the browser's files
            return Response(draw(), media_type="image/png", headers=headers)
        except (*SCAN_ERRORS, LookupError, ImportError) as error:
            return Response(first_line(error), status_code=409, media_type="text/plain")

    @app.get("/open")
    def open_page() -> dict[str, Any]:
        return desk.open_page()

    @app.get("/scan/{number}")
    def show_scan(number: int) -> dict[str, Any]:
        return desk.show_scan(number)

    @app.get("/picture/{number}/{name}")
    def draw(number: int, name: str) -> Any:
        return answer_picture(lambda: desk.draw(number, name))

    @app.get("/suggestion/{number}")
    def suggest(number: int) -> Any:
        return answer_picture(lambda: desk.suggest(number))

    @app.post("/press")
    def press(content: dict[str, Any]) -> dict[str, Any]:
        return desk.press(content)

    return Mount("/label", app)
