"""A headless Chromium for tests, driven through the DevTools protocol over a pipe: no library, no port, no network.

    with Browser(chromium_path()) as browser:
        browser.open(path_of_page)
        browser.evaluate("document.title")
        browser.click("#tab-backward"); browser.key("ArrowRight"); browser.screenshot(png)
        browser.problems        # console errors, uncaught exceptions, requests that are not the page itself
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Home": 36, "End": 35}


def chromium_path():
    """Where a Chromium or Chrome is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """Open as a context manager; `profile` is an empty folder."""

    def __init__(self, program, profile, width=1280, height=900):
        to_read, self.write_to = os.pipe()      # Chromium reads commands from descriptor 3 and writes to 4
        self.read_from, to_write = os.pipe()
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"],
            pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.buffer, self.number, self.session, self.problems, self.requests = b"", 0, None, [], []
        targets = self.send("Target.getTargets")["targetInfos"]
        target = next(t for t in targets if t["type"] == "page")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.write_to)
        os.close(self.read_from)

    def send(self, method, **parameters):
        """One command; returns its result."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.write_to, json.dumps(command).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def _message(self, seconds=60):
        while b"\0" not in self.buffer:
            if not select.select([self.read_from], [], [], seconds)[0]:
                raise TimeoutError("Chromium does not answer")
            more = os.read(self.read_from, 1 << 20)
            if not more:
                raise RuntimeError("Chromium has ended")
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(line)
        self._notice(message.get("method"), message.get("params", {}))
        return message

    def _notice(self, method, params):
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str([a.get("value") for a in params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])

    def resize(self, width, height):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, path, place="", ready="document.body && document.body.dataset.ready === 'yes'"):
        """Open a file afresh and wait until it is ready."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=Path(path).absolute().as_uri() + place)
        self.wait(ready)

    def wait(self, condition, seconds=30):
        until = time.monotonic() + seconds
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > until:
                raise TimeoutError(f"still not {condition}; problems: {self.problems}")
            time.sleep(0.05)

    def evaluate(self, expression):
        """The value of a JavaScript expression; an exception in it is raised."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "JavaScript failed"))
        return answer["result"].get("value")

    def mouse(self, x, y, *kinds):
        for kind in kinds:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="none" if kind == "mouseMoved" else "left", clickCount=1)

    def place(self, selector, across=0.5, down=0.5):
        """A point of an element in the window, scrolled into view; shares of its width and height."""
        return self.evaluate(f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
                             f"const r = e.getBoundingClientRect(); return [r.left + r.width * {across}, r.top + r.height * {down}]; }})()")

    def click(self, selector, across=0.5, down=0.5):
        self.mouse(*self.place(selector, across, down), "mouseMoved", "mousePressed", "mouseReleased")

    def hover(self, selector, across=0.5, down=0.5):
        self.mouse(*self.place(selector, across, down), "mouseMoved")

    def key(self, name):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=KEYS[name])

    def screenshot(self, path, whole=True):
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(picture["data"]))
