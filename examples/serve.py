#!/usr/bin/env python
"""Put a trained or an exported model behind HTTP; docs/deployment.md has the section "Serving".

    pip install 'visattn-dense[serve]'
    python examples/serve.py work_dirs/mine
    curl --data-binary @photo.jpg http://127.0.0.1:8000/predict

Starlette and uvicorn do the work, because a body of bytes needs no schema: FastAPI is Starlette
with schemas, and takes these functions as they are.

POST /predict     the image file is the body of the request. The answer is `Result.to_json`:
                  segments with RLE, or objects with boxes, scores and RLE.
    ?labels=png   segmentors: the label map as a PNG file in base64, in place of the RLE
    ?conf=0.5     least score, as `conf` of a `Predictor`
GET /health       the names of the classes

Every refusal is {"error": "..."}:

400 a damaged image, or a wrong option      413 too many bytes or pixels
408 the body came too slowly                415 no image of a known format
503 too many pictures wait, or too many connections are open; try again later
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, UnidentifiedImageError

from visattn_dense import Predictor
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.predict.results import Segmentation
from visattn_dense.predict.sources import as_rgb
from visattn_dense.visualization.overlay import write_label

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
except ImportError as missing:
    sys.exit(f'error: {missing}. Serving needs two packages: '
             "pip install 'visattn-dense[serve]', or pip install starlette uvicorn")

# Among Pillow's other readers are some that start programs.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'TIFF')


@dataclass
class Limits:
    """What one client, and all of them together, may take.

    Attributes:
        size: bytes of one body.
        pixels: of one picture.
        seconds: for one body to arrive.
        waiting: pictures that wait for the model or are in it.
        connections: open at the same time.
    """

    size: int = 20_000_000
    pixels: int = 50_000_000
    seconds: float = 20.
    waiting: int = 16
    connections: int = 64


class Service:
    """One model, and the pictures that wait for it.

    Two threads work: while one has the model, the other one decodes a picture or writes an answer.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.places = threading.BoundedSemaphore(limits.waiting)
        self.threads = ThreadPoolExecutor(2)
        self.model = threading.Lock()

    async def predict(self, request: Request) -> Response:
        options = dict(conf=_number(request, 'conf'), as_png=_wants_png(request))
        data = await _body(request, self.limits)
        if not self.places.acquire(blocking=False):
            raise HTTPException(503, f'{self.limits.waiting} pictures wait already; try again '
                                'later', {'Retry-After': '1'})
        work = self.threads.submit(self._answer, data, **options)
        # A client who leaves keeps its place until the work has ended.
        work.add_done_callback(lambda _: self.places.release())
        return Response(await asyncio.wrap_future(work), media_type='application/json')

    async def health(self, request: Request) -> Response:
        return JSONResponse(dict(classes=list(self.predictor.classes)))

    def _answer(self, data: bytes, *, conf: float | None, as_png: bool) -> bytes:
        image = _decoded(data, self.limits.pixels)
        try:
            with self.model:
                (result,) = self.predictor(image, conf=conf)
        except UserError as error:
            raise HTTPException(400, str(error)) from error
        found = result.to_json()
        if as_png and isinstance(result, Segmentation):
            file = io.BytesIO()
            write_label(file, result.labels)
            found['label_png'] = base64.b64encode(file.getvalue()).decode()
            for segment in found['segments']:
                del segment['rle']
        return json.dumps(found).encode()


def application(predictor: Predictor, limits: Limits | None = None) -> Starlette:
    """The service for any ASGI server."""
    service = Service(predictor, limits or Limits())
    return Starlette(
        routes=[Route('/predict', service.predict, methods=['POST']),
                Route('/health', service.health)],
        exception_handlers={HTTPException: _refusal, ClientDisconnect: _gone, Exception: _failure})


async def _body(request: Request, limits: Limits) -> bytes:
    """The body of a request, in at most `limits.size` bytes and `limits.seconds`.

    A body that is too long is read to its end and thrown away, so that its client reads the answer.
    A client that asks before it sends ("Expect: 100-continue", as curl does) is told at once.
    """
    declared = int(request.headers.get('content-length', 0))
    too_long = HTTPException(413, f'the body has more than {limits.size} bytes; send a smaller '
                             'file', {'Connection': 'close'})
    if declared > limits.size and 'expect' in request.headers:
        raise too_long

    async def read() -> tuple[bytearray, int]:
        body, count = bytearray(), 0
        async for part in request.stream():
            count += len(part)
            if count <= limits.size:
                body += part
        return body, count

    try:
        body, count = await asyncio.wait_for(read(), limits.seconds)
    except asyncio.TimeoutError:
        raise (too_long if declared > limits.size else HTTPException(
            408, f'the body did not arrive within {limits.seconds:g} seconds',
            {'Connection': 'close'})) from None
    if count > limits.size:
        raise too_long
    return bytes(body)


def _decoded(data: bytes, most: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB; one decoder reads both the size and the pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > most:
                raise HTTPException(413, f'the image has {image.width}x{image.height} pixels, and '
                                    f'at most {most} are taken; make it smaller')
            return as_rgb(image)
    except HTTPException:
        raise
    except UnidentifiedImageError as error:
        raise HTTPException(415, f'the body is no image ({", ".join(FORMATS)}); send the file '
                            'itself: curl --data-binary @photo.jpg') from error
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f'the image has more than {most} pixels; make it smaller'
                            ) from error
    # Pillow's decoders raise SyntaxError and others, according to the format.
    except Exception as error:
        raise HTTPException(400, f'the image is damaged: {error}') from error


def _number(request: Request, name: str) -> float | None:
    text = request.query_params.get(name)
    try:
        return None if text is None else float(text)
    except ValueError as error:
        raise HTTPException(400, f'{name} is a number, got {text!r}') from error


def _wants_png(request: Request) -> bool:
    form = request.query_params.get('labels', 'rle')
    if form not in ('rle', 'png'):
        raise HTTPException(400, f'labels is rle or png, got {form!r}')
    return form == 'png'


async def _refusal(request: Request, error: HTTPException) -> Response:
    return JSONResponse(dict(error=error.detail), error.status_code, error.headers)


async def _gone(request: Request, error: ClientDisconnect) -> Response:
    # Nobody reads it.
    return Response(status_code=400)


async def _failure(request: Request, error: Exception) -> Response:
    # The log has the traceback.
    return JSONResponse(dict(error='the model failed; the log of the server says why'), 500)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Put a model behind HTTP.')
    parser.add_argument('model', help='folder of a training run, config file or exported file')
    parser.add_argument('checkpoint', nargs='?', help='of a config file')
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0 opens the server to the '
                        'network (default: %(default)s, this machine alone)')
    parser.add_argument('--port', type=int, default=8000,
                        help='default: %(default)s; 0: a free one')
    parser.add_argument('--device')
    parser.add_argument('--native', action='store_true', help='compute in tiles, without resizing')
    for name, what in (('size', 'bytes of one body'), ('pixels', 'of one picture'),
                       ('seconds', 'for one body to arrive'),
                       ('waiting', 'pictures that wait for the model'),
                       ('connections', 'open at the same time')):
        default = getattr(Limits, name)
        parser.add_argument(f'--max-{name}', type=type(default), default=default, metavar='N',
                            help=f'{what} (default: {default})')
    add_debug(parser)
    return parser.parse_args()


def serve(args: argparse.Namespace) -> None:
    limits = Limits(**{item.name: getattr(args, f'max_{item.name}') for item in fields(Limits)})
    for item in fields(limits):
        if getattr(limits, item.name) <= 0:
            raise UserError(f'--max-{item.name} is above 0, got {getattr(limits, item.name)}')
    if not 0 <= args.port < 2**16:
        raise UserError(f'--port is from 0 to 65535, got {args.port}')
    native = dict(native=True) if args.native else {}
    predictor = Predictor(args.model, args.checkpoint, device=args.device, **native)
    # h11 checks what clients send, and needs no compiler.
    uvicorn.run(application(predictor, limits), host=args.host, port=args.port, http='h11',
                ws='none', limit_concurrency=limits.connections, timeout_keep_alive=5)


if __name__ == '__main__':
    sys.exit(run(serve, parse_args()))
