"""Python in a process of its own that has imported torch and transformers already.

It is forked from a server that has done nothing else: importing takes seconds, for each process of each test.
"""

import gc
import importlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["itrd_nlp.experiments.run", "itrd_nlp.cli.main", "accelerate.launchers"])


def run_code(code, timeout=300, **options):
    """What ``python -c code`` does, as :func:`subprocess.run` tells it; options of :func:`_execute`."""
    return _run(("code", code, []), timeout, options)


def run_module(name, *words, timeout=300, **options):
    """What ``python -m name words`` does."""
    return _run(("module", name, list(map(str, words))), timeout, options)


def run_script(path, *words, timeout=300, **options):
    """What ``python path words`` does."""
    return _run(("script", str(path), list(map(str, words))), timeout, options)


def on_ranks(work, folder, *args, ranks=2):
    """What ``work(folder, *args)``, a function of a test module, returns on each of some processes; through JSON."""
    tests = Path(__file__).parent
    module = ".".join(Path(work.__code__.co_filename).relative_to(tests).with_suffix("").parts)
    call = (module, work.__name__, str(folder), *args)
    done = run_code(
        f"import sys\nsys.path.insert(0, {str(tests)!r})\n"
        "from accelerate import debug_launcher\nfrom forked import report\n"
        f"debug_launcher(report, {call!r}, {ranks})\n"
    )
    sys.stderr.write(done.stderr)
    assert done.returncode == 0
    return [json.loads(Path(folder, f"rank{rank}.json").read_text()) for rank in range(ranks)]


def report(module, name, folder, *args):
    """On one of the processes: write what the function returns."""
    from torch.distributed import get_rank

    path = Path(folder, f"rank{get_rank()}.json")
    path.write_text(json.dumps(getattr(importlib.import_module(module), name)(folder, *args)))


def _run(what, timeout, options):
    pipes = [CONTEXT.Pipe(duplex=False) for _ in ("stdout", "stderr")]
    process = CONTEXT.Process(target=_execute, args=(what, *(writes for _, writes in pipes)), kwargs=options)
    process.start()
    for _, writes in pipes:
        writes.close()
    with ThreadPoolExecutor(len(pipes)) as pool:
        outputs = [pool.submit(_read, reads) for reads, _ in pipes]
        process.join(timeout)
        alive = process.is_alive()
        if alive:
            process.kill()
    if alive:
        raise subprocess.TimeoutExpired(str(what), timeout)
    return subprocess.CompletedProcess(what, process.exitcode, *(output.result() for output in outputs))


def _read(pipe):
    """All that is written to a pipe until its last writer ends."""
    with os.fdopen(os.dup(pipe.fileno()), errors="replace") as file:
        return file.read()


def _execute(what, stdout, stderr, file_limit=None):
    """In the new process: run what was asked for; its files may hold ``file_limit`` bytes each."""
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stdout.close(), stderr.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails then, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    gc.freeze()  # what was imported is not garbage, and looking through it takes half a second each time
    kind, name, words = what
    sys.argv = [name, *words]
    if kind == "code":
        exec(compile(name, "<code>", "exec"), {"__name__": "__main__"})
    elif kind == "module":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(name).parent))
        runpy.run_path(name, run_name="__main__")
