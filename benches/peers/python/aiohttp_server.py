"""The job server of the tutorials: a queue, a dictionary of results, and workers, all in one process and memory.

usage: aiohttp_server.py PORT
"""

import asyncio
import sys
import uuid

import uvloop
from aiohttp import web

WORKERS = 10


async def submit(request):
    job = str(uuid.uuid4())
    await request.app["queue"].put((job, await request.text()))
    return web.json_response({"id": job}, status=202)


async def result(request):
    job = request.match_info["id"]
    if job in request.app["results"]:
        return web.json_response({"id": job, "result": request.app["results"][job]})
    return web.json_response({"id": job}, status=202)


async def work(app):
    while True:
        job, payload = await app["queue"].get()
        app["results"][job] = payload


async def workers(app):
    tasks = [asyncio.create_task(work(app)) for _ in range(WORKERS)]
    yield
    for task in tasks:
        task.cancel()


def main():
    app = web.Application()
    app["queue"] = asyncio.Queue()
    app["results"] = {}
    app.cleanup_ctx.append(workers)
    app.router.add_post("/jobs", submit)
    app.router.add_get("/jobs/{id}", result)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)


main()
