"""The pool's HTML page: self-contained, safe against hostile text, and working in headless Chromium."""

import html
import json
import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from rl_lab.curriculum.view import PoolView
from rl_lab.pool import main
from rl_lab.reports.pages import pool
from tests.support.pages import CHROMIUM, found_in_browser
from tests.support.pools import create
from tests.support.questions import HOSTILE


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "pool.html"
    assert main(["html", str(finished), "--out", str(path)]) == 0
    return path


def data(path):
    text = path.read_text().split('<script type="application/json" id="pool-data">')[1].split("</script>")[0]
    return json.loads(text)


def test_the_page_needs_nothing_from_outside(page):
    text = html.unescape(page.read_text())
    assert "default-src 'none'" in text and not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "@import" not in text and "http://" not in re.sub("http://www.w3.org/\\S+", "", text)


def test_items_carry_their_pictures_history_and_tokens(page, finished):
    shown, view = data(page), PoolView(str(finished))
    assert len(shown["items"]) == 40 and shown["categories"][0] == "perception"
    item = max(shown["items"], key=lambda item: item["groups"])
    number = view.number(item["id"])
    kind, _, picture = item["images"][0].partition(",")
    assert kind == "data:image/webp;base64" and np.asarray(Image.open(BytesIO(b64decode(picture)))).shape == (48, 64, 3)
    assert len(item["moves"]) == view.items.groups[number]
    sample = item["samples"][0]
    assert len(sample["tokens"]) == len(sample["logprobs"]) == 8 and all(value <= 0 for value in sample["logprobs"])
    assert {name for name, _ in sample["rewards"]} == {"choice", "judge"}
    assert [s["step"] for s in item["samples"]] == sorted((s["step"] for s in item["samples"]), reverse=True)


def test_hostile_completions_stay_text(page):
    assert HOSTILE not in page.read_text()
    samples = [sample["completion"] for item in data(page)["items"] for sample in item["samples"]]
    assert any(HOSTILE in completion for completion in samples)


def test_filters_and_limits_of_the_command_choose_the_items(finished, tmp_path, capsys):
    path = tmp_path / "some.html"
    main(["html", str(finished), "--out", str(path), "--category", "planning", "--limit", "4", "--rollouts", "1"])
    items = data(path)["items"]
    assert len(items) == 4 and {item["category"] for item in items} == {"planning"}
    assert all(len(item["samples"]) <= 1 for item in items)


def test_pictures_beyond_the_budget_and_missing_rollouts_are_said(tmp_path, monkeypatch, capsys, finished):
    monkeypatch.setattr(pool, "IMAGE_BUDGET_BYTES", 1000)
    main(["html", str(finished), "--out", str(tmp_path / "pool.html")])
    assert "pictures did not fit into the page" in capsys.readouterr().out
    create(tmp_path / "new", 3).close()
    main(["html", str(tmp_path / "new")])
    assert "no rollout of these items is under rollouts/" in capsys.readouterr().out
    assert "Nothing was selected yet." in (tmp_path / "new" / "pool.html").read_text()


def test_a_picture_that_is_none_is_counted(tmp_path, capsys):
    store = create(tmp_path, 3)
    store.keep_images(0, [b"not a picture"])
    store.close()
    main(["html", str(tmp_path)])
    assert "1 pictures are missing or cannot be read" in capsys.readouterr().out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_browser_filters_sorts_and_shows_tokens_with_their_log_probabilities(page):
    script = """
      found.all = names();
      pick("sort", "pass rate, lowest first");
      found.lowest = names();
      pick("category", "planning");
      found.planning = names();
      pick("search", "next_step-007");
      found.search = names();
      pick("search", "pointing-000"); pick("category", "");
      document.querySelector(".pool-list button").click();
      found.title = document.title;
      found.detail = document.querySelector(".pool-detail").innerText;
      found.tokens = tokens();
      const images = [...document.querySelectorAll(".pool-images img")];
      await Promise.all(images.map((image) => image.complete || new Promise((done) => { image.onload = done; })));
      found.loaded = images.map((image) => image.naturalWidth);
      pick("search", "no such thing");
      found.none = document.querySelector(".pool-detail").innerText;
    """
    found = found_in_browser(page, script)
    items = {item["id"]: item for item in data(page)["items"]}
    assert len(found["all"]) == 40 and items[found["all"][0]]["frontier"] == max(i["frontier"] for i in items.values())
    rates = [items[name]["rate"] for name in found["lowest"]]
    assert rates == sorted(rates)
    assert {items[name]["category"] for name in found["planning"]} == {"planning"} and len(found["planning"]) == 10
    assert found["search"] == ["next_step-007"] and found["none"] == "No item matches."
    assert found["title"] == "frontier: pool" and "How its posterior moved" in found["detail"]
    sample = items["pointing-000"]["samples"][0]
    assert found["tokens"][0][0] == sample["tokens"][0]
    assert found["tokens"][0][1].startswith(f"log-probability {sample['logprobs'][0]:.3f}")
    assert found["loaded"] == [64]
