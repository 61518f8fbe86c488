"""The page in a real browser: it needs no network, toggles curves, tells numbers, fits a phone, follows dark mode."""

import math
import shutil
import time
from pathlib import Path

import pytest

from batch_renorm.reporting import compare
from batch_renorm.reporting.runs import find_runs
from batch_renorm.showing import page

FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver here (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    yield window
    window.quit()


@pytest.fixture
def opened(browser, published, tmp_path):
    """opened(root, scale, width, dark): the page of the runs under the root, in the browser."""

    def opened(root, scale="glyphs", width=1280, dark=False):
        runs = find_runs([root])[0]
        text = page.page(compare.compare(runs, published, scale), runs, published, "a command")
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        screen = {"width": width, "height": 850, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.get((tmp_path / "page.html").as_uri())
        return browser

    return opened


def drawn(browser, who):
    """id -> the y values of the drawn lines of ours, or of the paper."""
    script = "return document.getElementById('chart').data.filter(t => t.meta && t.meta.who == arguments[0])"
    return {
        t["meta"]["id"]: t["y"] for t in browser.execute_script(script + ".map(t => ({meta: t.meta, y: t.y}))", who)
    }


def click(browser, selector):
    browser.find_element("css selector", selector).click()


def choose(browser, select, value):
    browser.find_element("css selector", f'#{select} option[value="{value}"]').click()


def test_a_curve_is_toggled_and_a_number_read(opened, write, tmp_path):
    for seed, last in enumerate((60.0, 61.0)):
        write(tmp_path, "noniid_renorm", seed, {"val_top1": [(100, 50.0), (300, last)]}, steps=300)
        write(tmp_path, "noniid_batchnorm", seed, {"val_top1": [(100, 48.0), (300, 55.0)]}, steps=300)
    browser = opened(tmp_path)
    renorm = "noniid_renorm/val_top1"
    assert drawn(browser, "ours") == {renorm: [50, 60.5], "noniid_batchnorm/val_top1": [48, 55]}
    button = f'#legend button[data-id="{renorm}"]'
    assert "60.5%" in browser.find_element("css selector", button).text
    assert "paper's best 78.5%" in browser.find_element("css selector", button).text
    click(browser, button)
    assert renorm not in drawn(browser, "ours")
    assert renorm not in drawn(browser, "paper")
    click(browser, button)
    assert drawn(browser, "ours")[renorm] == [50, 60.5]

    # Hovering over our last point tells its value.
    script = """const chart = document.getElementById('chart');
    const at = chart.data.findIndex(t => t.meta && t.meta.id == arguments[0] && t.meta.who == 'ours');
    Plotly.Fx.hover(chart, [{curveNumber: at, pointNumber: 1}], ['x2y2']);
    return chart.querySelector('.hoverlayer').textContent;"""
    told = browser.execute_script(script, renorm)
    assert "60.5%" in told
    assert "Batch Renorm, ours, mean of 2 seeds" in told


def test_nothing_is_asked_of_a_network_and_nothing_fails(opened, fill):
    browser = opened(fill(seeds=[0]))
    asked = [line["message"] for line in browser.get_log("performance") if "requestWillBeSent" in line["message"]]
    assert not [line for line in asked if '"url":"http' in line]
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    text = Path(browser.current_url.removeprefix("file://")).read_text()
    assert "<link" not in text.replace('<link rel="icon" href="data:,">', "").split("<script>")[0]


def test_smoothing_axes_and_single_seeds(opened, write, tmp_path):
    curves = {"val_top1": [(100, 40.0), (200, 60.0)], "images_per_second": [(100, 10.0), (200, 20.0)]}
    folder = write(tmp_path, "iid_batchnorm", 0, curves, steps=200)
    config = "size: {workers: 2}\nminibatch: {size: 6}\n"
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + config)
    write(tmp_path, "iid_renorm", 0, {"val_top1": [(100, 30.0)]}, steps=200, step=100, state="running")
    browser = opened(tmp_path)
    click(browser, '[data-view="fig1"]')
    assert set(drawn(browser, "seed 0")) == {"iid_renorm/val_top1"}  # unfinished: always on its own
    assert "30% so far" in browser.find_element("css selector", "#legend").text.replace("30.0%", "30%")
    assert "running at step 100 of 200" in browser.find_element("css selector", "#runs").text

    choose(browser, "y", "share")
    assert drawn(browser, "ours")["iid_batchnorm/val_top1"] == pytest.approx([100 * 40 / 60, 100])
    choose(browser, "y", "percent")
    assert drawn(browser, "ours")["iid_batchnorm/val_top1"] == [40, 60]  # accuracies are smoothed where asked for
    script = "const s = document.getElementById('smooth'); s.value = 0.2; s.dispatchEvent(new Event('input'))"
    browser.execute_script(script)
    weight = math.exp(-100 / 40)  # 100 steps ago, over a fifth of 200
    smoothed = [40, (40 * weight + 60) / (weight + 1)]
    assert drawn(browser, "ours")["iid_batchnorm/val_top1"] == pytest.approx(smoothed)
    assert "smoothed over 20% of the training's steps" in browser.find_element("css selector", "#about").text

    # 100 steps of 12 images at 10 a second, then 100 at 20: 2 and 3 minutes.
    choose(browser, "x", "time")
    x = "return document.getElementById('chart').data.find(t => t.meta && t.meta.who == 'ours').x"
    assert browser.execute_script(x) == pytest.approx([2, 3])
    assert not drawn(browser, "paper")  # which gives no time
    choose(browser, "x", "share")
    assert browser.execute_script(x) == pytest.approx([0.5, 1])
    click(browser, "#seeds")
    assert set(drawn(browser, "seed 0")) == {"iid_batchnorm/val_top1", "iid_renorm/val_top1"}
    assert not drawn(browser, "ours")
    click(browser, "#paper")
    assert not drawn(browser, "paper")
    choose(browser, "metric", "images_per_second")
    assert set(drawn(browser, "seed 0")) == {"iid_batchnorm/images_per_second"}


def test_ours_over_theirs_on_imagenet(opened, fill):
    browser = opened(fill(scale="imagenet", steps=140_000, top=1.0, seeds=[0]), "imagenet")
    layout = browser.execute_script(
        "const l = document.getElementById('chart').layout; return [l.yaxis.range, !!l.xaxis2]"
    )
    assert layout == [[30, 80], False]
    assert set(drawn(browser, "ours")) == set(drawn(browser, "paper"))
    assert len(drawn(browser, "ours")) == 5


def test_a_phone_shows_it_without_scrolling_sideways(opened, fill):
    browser = opened(fill(seeds=[0]), width=375)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 375
    small = """return [...document.querySelectorAll('button, select')].filter(b => b.offsetParent)
        .map(b => b.getBoundingClientRect().height)"""
    assert min(browser.execute_script(small)) >= 36  # a finger's width


def test_dark_mode_is_followed_at_once(opened, fill, browser):
    opened(fill(seeds=[0]))
    colours = """const data = document.getElementById('chart').data;
    const line = data.find(t => t.meta && t.meta.who == 'ours').line.color;
    const font = document.getElementById('chart').layout.font.color;
    return [getComputedStyle(document.body).backgroundColor, font, line]"""
    light = browser.execute_script(colours)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    deadline = time.monotonic() + 20  # the browser tells the page at its next frame
    while (dark := browser.execute_script(colours))[2] == light[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    assert dark[0] == "rgb(20, 23, 26)"


def test_activations_are_drawn_after_the_chosen_step(opened, write, tmp_path):
    layers = {f"activation_distance/b{i}": [(100, 0.1 * i), (200, 0.2 * i)] for i in (3, 1, 2)}
    write(tmp_path, "noniid_renorm", 0, {"val_top1": [(100, 1.0)], **layers}, steps=200)
    browser = opened(tmp_path)
    profile = "const d = document.getElementById('profile').data[0]; return [d.text, d.y]"
    names, values = browser.execute_script(profile)
    assert names == ["b3", "b1", "b2"]  # the file's order, which is the network's
    assert values == pytest.approx([0.6, 0.2, 0.4])
    browser.execute_script(
        "const s = document.getElementById('step'); s.value = 0; s.dispatchEvent(new Event('input'))"
    )
    assert browser.execute_script(profile)[1] == pytest.approx([0.3, 0.1, 0.2])
    assert browser.execute_script("return document.getElementById('maps').data.length") == 1


def test_configs_differences_and_links(opened, write, published, tmp_path):
    write(tmp_path / "runs", "iid_renorm", 0, {"val_top1": [(100, 1.0)]})
    folder = write(tmp_path / "runs", "micro4_renorm", 0, {"val_top1": [(100, 1.0)]})
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text() + "minibatch: {group: 4}\n")
    (folder / "wandb" / "offline-run-1").mkdir(parents=True)
    (tmp_path / "runs/glyphs/iid_renorm/seed0/wandb").mkdir()
    (tmp_path / "runs/glyphs/iid_renorm/seed0/wandb/url").write_text("https://wandb.ai/e/p/runs/abc\n")
    differing = page.config_differences(find_runs([tmp_path / "runs"])[0])
    assert differing["head"] == ["", "Batch Renorm, i.i.d.", "Batch Renorm, groups of 4"]
    assert differing["rows"] == [["minibatch.group", "\N{EN DASH}", "4"]]
    browser = opened(tmp_path / "runs")
    links = [a.get_attribute("href") for a in browser.find_elements("css selector", "#runs a")]
    assert (tmp_path / "runs/glyphs/iid_renorm/seed0").as_uri() in links
    assert "https://wandb.ai/e/p/runs/abc" in links
    assert "/runs/*/*/*/wandb/offline-run-*" in browser.find_element("css selector", "#runs").text
    missing = browser.find_element("css selector", "#missing").text
    assert "python train.py experiment=iid_batchnorm seed=0" in missing


RANGE = "return document.getElementById('chart').layout.yaxis2.range"


def zoom(browser):
    """Drags a rectangle over the middle of our panel, as a hand does."""
    from selenium.webdriver import ActionChains

    panel = browser.find_element("css selector", '#chart .nsewdrag[data-subplot="x2y2"]')
    mouse = ActionChains(browser).move_to_element_with_offset(panel, -60, -50).click_and_hold()
    mouse.move_by_offset(60, 50).move_by_offset(60, 50).release().perform()


def test_a_zoom_stays_when_a_curve_is_toggled(opened, fill):
    browser = opened(fill(seeds=[0]))
    assert browser.execute_script(RANGE)[0] < 40
    zoom(browser)
    zoomed = browser.execute_script(RANGE)
    assert zoomed[0] > 40
    click(browser, '#legend button[data-id="noniid_renorm/val_top1"]')
    assert browser.execute_script(RANGE) == zoomed
    click(browser, '[data-view="fig1"]')  # another figure is another question
    assert browser.execute_script(RANGE)[0] < 40
    titles = browser.execute_script(
        "const l = document.getElementById('chart').layout; return [l.yaxis.title.text, l.yaxis2.title.text]"
    )
    assert titles == ["top-1 accuracy, %"] * 2
    buttons = browser.execute_script(
        "return [...document.querySelectorAll('#chart .modebar-btn')].map(b => b.dataset.title).join().toLowerCase()"
    )
    assert "zoom" in buttons
    assert not {"cloud", "upload", "edit", "share"} & set(buttons.replace(",", " ").split())


def test_what_is_shown_is_in_the_address(opened, fill):
    browser = opened(fill(seeds=[0]))
    click(browser, '[data-view="fig2"]')
    click(browser, '#legend button[data-id="micro4_renorm/val_top1"]')
    choose(browser, "y", "share")
    click(browser, "#seeds")
    before = set(drawn(browser, "seed 0"))
    address = browser.current_url
    browser.get("about:blank")
    browser.get(address)
    assert set(drawn(browser, "seed 0")) == before == {"iid_batchnorm/val_top1", "micro4_batchnorm/val_top1"}
    assert browser.find_element("css selector", "#y").get_attribute("value") == "share"
    browser.get("about:blank")
    browser.get(address.split("#")[0] + "#view=nonsense&x=nonsense&smooth=nonsense")
    assert drawn(browser, "ours")  # what no page has said is left out
    assert not [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def test_tables_are_sorted_by_a_click(opened, write, tmp_path):
    for experiment, last in (("iid_batchnorm", 60.0), ("iid_renorm", 9.5), ("micro4_renorm", 70.0)):
        write(tmp_path, experiment, 0, {"val_top1": [(100, last)]}, steps=100)
    browser = opened(tmp_path)
    column = "return [...document.querySelector('#tables tbody').rows].map(r => r.cells[2].textContent)"
    head = "#tables th:nth-child(3) button"
    click(browser, head)
    assert browser.execute_script(column)[:4] == ["9.5", "60.0", "70.0", "\N{EN DASH}"]
    click(browser, head)
    assert browser.execute_script(column)[:4] == ["70.0", "60.0", "9.5", "\N{EN DASH}"]
    files = [a.get_attribute("href").rpartition("/")[2] for a in browser.find_elements("css selector", "#files a")]
    assert files == ["glyphs.csv", "glyphs-claims.csv", "glyphs-checks.csv"]


def test_ours_and_the_papers_are_compared_best_with_best(opened, write, tmp_path):
    write(tmp_path, "noniid_renorm", 0, {"val_top1": [(100, 64.0), (200, 50.0)]}, steps=200)
    browser = opened(tmp_path)
    text = browser.find_element("css selector", '#legend button[data-id="noniid_renorm/val_top1"]').text
    assert text.split("\n")[1:] == ["best 64.0%", "at the end 50.0%", "paper's best 78.5%*"]
    assert "78.6% in its figure 3" in browser.find_element("css selector", "#about").text
