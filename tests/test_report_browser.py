"""The report in a real browser: nothing on its console, a click and a key open a trial, and a phone
shows it without scrolling sideways. Needs Chromium and its driver.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

from studies.results import tables as views
from studies.results.report import write_report
from studies.search.driver import SearchDriver
from studies.workers.executors import run_in_process
from support import trivial

pytestmark = pytest.mark.skipif(
    not (shutil.which("chromedriver") and shutil.which("chromium")),
    reason="chromium and chromedriver are not installed",
)
FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "no-first-run",
)


class Browser:
    """A session of a W3C WebDriver."""

    def __init__(self, port, profile):
        self.url = f"http://127.0.0.1:{port}"
        options = {
            "args": [*FLAGS, f"user-data-dir={profile}"],
            "binary": shutil.which("chromium"),
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        session = self.send("/session", {"capabilities": {"alwaysMatch": wanted}})
        self.url += f"/session/{session['sessionId']}"

    def send(self, path, value=None, method="POST"):
        data = None if method == "DELETE" else json.dumps(value or {}).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def run(self, script, *arguments):
        return self.send("/execute/sync", {"script": script, "args": list(arguments)})

    def find(self, selector):
        found = self.send("/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def console(self):
        return [entry["message"] for entry in self.send("/se/log", {"type": "browser"})]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen(
        [shutil.which("chromedriver"), f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    opened = None
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        opened = Browser(port, tmp_path_factory.mktemp("profile"))
        yield opened
    finally:
        if opened is not None:
            opened.send("", method="DELETE")
        driver.terminate()
        driver.wait(20)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("browser") / "study"
    with SearchDriver.create(directory, trivial.study(search__trials=10)) as driver:
        run_in_process(driver, trivial.trainable)
    return directory


def test_trials_open_by_click_and_by_key_without_a_word_on_the_console(browser, study):
    path = write_report(study)
    front = [record.number for record in views.front_members(*views.open_records(study))]
    browser.send("/url", {"url": f"file://{path}"})
    heading = "return document.querySelector('#trial h3').textContent"
    recommended = browser.run(heading)
    assert "the best compromise" in recommended
    other = next(n for n in front if f"Trial {n}," not in recommended)
    mark = browser.find(f"[data-trial='{other}']")
    browser.send(f"/element/{mark}/click")
    assert browser.run(heading) == f"Trial {other}"
    best = int(recommended.split()[1].rstrip(","))
    browser.run("document.querySelector(arguments[0]).focus()", f"[data-trial='{best}']")
    browser.send(
        "/actions",
        {
            "actions": [
                {
                    "type": "key",
                    "id": "keyboard",
                    "actions": [
                        {"type": "keyDown", "value": "\ue007"},
                        {"type": "keyUp", "value": "\ue007"},
                    ],
                }
            ]
        },
    )
    assert browser.run(heading) == recommended
    browser.run(
        "const x = document.querySelector('#x'); x.selectedIndex = 3;"
        "x.dispatchEvent(new Event('change'))"
    )
    assert browser.run("return document.querySelectorAll('#plot .trial').length") > 0
    assert browser.console() == []


def test_a_phone_shows_the_page_without_scrolling_sideways(browser, study):
    browser.send("/window/rect", {"width": 400, "height": 800})
    browser.send("/url", {"url": f"file://{write_report(study)}"})
    wide = browser.run("return document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
    size = browser.run(
        "const t = document.querySelector('#plot text'); return t.getBoundingClientRect().height"
    )
    assert size >= 10  # pixels


CROWD = """
const one = data.trials[0];
data.trials = Array.from({ length: 18 }, (_, n) => ({ ...one, n, front: true, knee: n === 9,
  v: one.v.map((_, k) => (k ? 95 - n / 9 : 93 + n / 9)), i: one.i.map(() => null) }));
draw();
const box = (node) => {
  const b = node.getBoundingClientRect();
  return [b.left, b.top, b.right, b.bottom];
};
const all = (selector) => [...document.querySelectorAll(selector)];
return { names: all("#plot .name").map((n) => [n.textContent, ...box(n)]),
  circles: all("#plot .trial").map((n) => box(n)) };
"""


@pytest.mark.parametrize("width", [1200, 500])
def test_every_member_of_a_crowded_front_has_its_number_and_none_lies_on_another(
    browser, study, width
):
    browser.send("/window/rect", {"width": width, "height": 900})
    browser.send("/url", {"url": f"file://{write_report(study)}"})
    found = browser.run(CROWD)
    names, circles = found["names"], found["circles"]
    assert sorted(int(name) for name, *_ in names) == list(range(18))
    for n, (_, left, top, right, bottom) in enumerate(names):
        high = (top + 3, bottom - 3)  # a text's box is higher than its digits
        for _, other_left, other_top, other_right, other_bottom in names[:n]:
            assert (
                right <= other_left
                or other_right <= left
                or high[1] <= other_top + 3
                or other_bottom - 3 <= high[0]
            )
        for x1, y1, x2, y2 in circles:
            middle, radius = ((x1 + x2) / 2, (y1 + y2) / 2), (x2 - x1) / 2 - 1
            away = (
                middle[0] - max(left, min(middle[0], right)),
                middle[1] - max(high[0], min(middle[1], high[1])),
            )
            assert away[0] ** 2 + away[1] ** 2 >= radius**2
