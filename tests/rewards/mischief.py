"""Reward functions that do harm, each of the kind that its completion names."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

SECRETS = ("HF_TOKEN", "WANDB_API_KEY", "RAY_AUTH_TOKEN", "OPENAI_API_KEY", "MY_PASSWORD")
SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"


def forge(value):
    """Write to every descriptor what looks like a reply."""
    reply = json.dumps({"value": value}).encode()
    for frame in (
        reply,
        len(reply).to_bytes(8, "big") + reply,
        (16 + len(reply)).to_bytes(8, "big") + bytes(16) + reply,
    ):
        for descriptor in sorted(int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2):
            with contextlib.suppress(OSError):
                os.write(descriptor, frame)


def start(**options):
    """A child that would outlive everybody; its process id."""
    with subprocess.Popen([sys.executable, "-c", SLEEP], stdout=subprocess.PIPE, **options) as child:
        pid = int(child.stdout.readline())
        child.wait = lambda *_: None
    return pid


def orphan():
    """A grandchild in a session of its own, whose parent has ended."""
    read, write = os.pipe()
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.write(write, str(os.getpid()).encode())
            time.sleep(1000)
        os._exit(0)
    os.wait()
    return int(os.read(read, 20))


def mischief(prompts, completions, target, **columns):
    """What the completion says, on the target."""
    word, target = completions[0], target[0]
    if word == "print":
        print(json.dumps({"value": 1.0}), flush=True)
        print("error: not mine", file=sys.stderr, flush=True)
        return [0.5]
    if word == "forge":
        forge(1.0)
        return [0.0]
    if word == "forge later":
        threading.Timer(0.2, forge, [1.0]).start()
        return [0.5]
    if word == "allocate":
        return [len(bytearray(int(target))) * 0.0]
    if word == "setsid":
        return [start(start_new_session=True) / 2**31]
    if word == "orphan":
        return [orphan() / 2**31]
    if word == "hang with an orphan":
        with open(os.path.join(os.environ["TMPDIR"], "pid"), "w") as file:
            file.write(str(orphan()))
        time.sleep(1000)
    if word == "secrets":
        known = [name for name in SECRETS if name in os.environ]
        return [float(bool(known) or os.environ["HOME"] == target)]
    if word == "environment of the caller":
        with open(f"/proc/{target}/environ", "rb") as file:
            return [float(b"HF_TOKEN" in file.read())]
    if word == "signal the caller":
        os.kill(int(target), 0)
        return [1.0]
    if word == "write":
        with open(target, "w") as file:
            file.write("gone")
    if word == "remove":
        os.remove(target)
    if word == "write by a child":
        subprocess.run([sys.executable, "-c", f"open({target!r}, 'a').write('gone')"], check=True)
    if word == "scratch":
        for folder in ("HOME", "TMPDIR"):
            with open(os.path.join(os.environ[folder], "mine"), "w") as file:
                file.write("mine")
        with open("/dev/null", "w") as file:
            file.write("nothing")
        return [len(os.environ["TMPDIR"]) / 1000]
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "exit":
        sys.exit(0)
    return [1.0]
