"""The worker and the caller of each README, run as they are printed."""

from __future__ import annotations

import re
import signal
import tempfile
from pathlib import Path

from scenarios import World
from server import CLIENTS, Process


async def readme(world: World) -> None:
    """The worker runs the caller's job, and leaves on SIGTERM."""
    language = world.driver.language
    assert language
    text = (CLIENTS / language.folder / "README.md").read_text()
    programs = re.findall(rf"^```{language.fence}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(programs) == 2, f"{len(programs)} programs, not a worker and a caller"
    # Below the library, so that its name means it.
    with tempfile.TemporaryDirectory(dir=CLIENTS / language.folder, prefix="readme-") as folder:
        worker, caller = (str(Path(folder) / f"{name}.{language.suffix}") for name in ("worker", "caller"))
        for file, program in zip((worker, caller), programs, strict=True):
            Path(file).write_text(program.replace("localhost:50051", world.server.address))
        working = await Process.start([*language.run, worker])
        try:
            said = await (await Process.start([*language.run, caller])).line()
            assert "ada@example.org" in said, f"the caller printed {said!r}"
            working.signal(signal.SIGTERM)
            code = await working.ended()
            assert code == 0, f"the worker ended with {code}"
        finally:
            await working.kill()
